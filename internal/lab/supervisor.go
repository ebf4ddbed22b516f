package lab

func supervise(string) int { return 1 }
