package h2

import "encoding/binary"

// Frame types and flags of RFC 9113, section 6.
const (
	frameData         = 0x0
	frameHeaders      = 0x1
	framePriority     = 0x2
	frameRST          = 0x3
	frameSettings     = 0x4
	framePushPromise  = 0x5
	framePing         = 0x6
	frameGoAway       = 0x7
	frameWindowUpdate = 0x8
	frameContinuation = 0x9

	flagAck        = 0x1
	flagEndStream  = 0x1
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20
)

// Settings of RFC 9113, section 6.5.2, and RFC 8441.
const (
	settingHeaderTableSize   = 0x1
	settingEnablePush        = 0x2
	settingMaxStreams        = 0x3
	settingInitialWindow     = 0x4
	settingMaxFrame          = 0x5
	settingMaxHeaderList     = 0x6
	settingExtendedConnect   = 0x8
	settingLen               = 6
	defaultWindow            = 65535     // what both sides have before SETTINGS
	minMaxFrame              = 1 << 14   // smallest legal SETTINGS_MAX_FRAME_SIZE, and its default
	maxMaxFrame              = 1<<24 - 1 // largest legal one
	maxWindow                = 1<<31 - 1
	maxStreamID              = 1<<31 - 1
	clientPreface            = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	pingLen, rstLen, prioLen = 8, 4, 5
)

// frameHeader is the fixed part of every frame (RFC 9113, section 4.1).
type frameHeader struct {
	length uint32
	id     uint32
	typ    uint8
	flags  uint8
}

// parseFrameHeader reads the FrameHeaderLen bytes at the start of b.
func parseFrameHeader(b []byte) frameHeader {
	_ = b[FrameHeaderLen-1]
	return frameHeader{
		length: uint32(b[0])<<16 | uint32(b[1])<<8 | uint32(b[2]),
		typ:    b[3],
		flags:  b[4],
		id:     binary.BigEndian.Uint32(b[5:]) & maxStreamID,
	}
}

// putFrameHeader writes FrameHeaderLen bytes to b.
func putFrameHeader(b []byte, length int, typ, flags uint8, id uint32) {
	_ = b[FrameHeaderLen-1]
	b[0], b[1], b[2] = byte(length>>16), byte(length>>8), byte(length)
	b[3], b[4] = typ, flags
	binary.BigEndian.PutUint32(b[5:], id)
}

func appendFrameHeader(b []byte, length int, typ, flags uint8, id uint32) []byte {
	return append(b, byte(length>>16), byte(length>>8), byte(length), typ, flags,
		byte(id>>24), byte(id>>16), byte(id>>8), byte(id))
}

func appendSetting(b []byte, id uint16, v uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(b, id), v)
}
