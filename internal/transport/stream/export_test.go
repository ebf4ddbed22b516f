package stream

import "time"

func init() { lingerBlocked = 200 * time.Millisecond }
