package connect

// Protocol is how a proxy reaches the next hop of a connection.
type Protocol uint8

// The protocols.
const (
	// TCP is plaintext as it is.
	TCP Protocol = iota
	// HBONE is a mutual TLS tunnel.
	HBONE
	// DoubleHBONE is one tunnel inside another: the outer one ends at the
	// gateway of another network, the inner one behind it.
	DoubleHBONE
)

func (p Protocol) String() string {
	switch p {
	case HBONE:
		return "HBONE"
	case DoubleHBONE:
		return "DOUBLEHBONE"
	case TCP:
	}
	return "TCP"
}
