package jwt

// Refusal is why a token is not accepted. Its text is that of Envoy, where Envoy has
// one: programs and people look for it.
type Refusal uint8

// The refusals. The zero value is none.
const (
	Accepted Refusal = iota
	NotThreeParts
	BadHeader
	BadAlgorithm
	BadPayload
	BadSignature
	UnknownIssuer
	NotYetValid
	Expired
	WrongAudience
	NotVerified
	NoSuchKey
	NoKeys
	TooLarge
	TooMany
	refusalCount
)

var texts = [refusalCount]string{
	NotThreeParts: "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections",
	BadHeader:     "Jwt header is an invalid Base64url input or an invalid JSON",
	BadAlgorithm:  "Jwt header [alg] field value is invalid",
	BadPayload:    "Jwt payload is an invalid Base64 or an invalid JSON",
	BadSignature:  "Jwt signature is an invalid Base64",
	UnknownIssuer: "Jwt issuer is not configured",
	NotYetValid:   "Jwt not yet valid",
	Expired:       "Jwt is expired",
	WrongAudience: "Audiences in Jwt are not allowed",
	NotVerified:   "Jwt verification fails",
	NoSuchKey:     "Jwks doesn't have key to match kid or alg from Jwt",
	NoKeys:        "Jwks remote fetch is failed",
	TooLarge:      "Jwt is too large",
	TooMany:       "Too many Jwts",
}

// Error implements error.
func (r Refusal) Error() string { return texts[min(r, refusalCount-1)] }

// Refusals lists all but Accepted.
func Refusals() []Refusal {
	out := make([]Refusal, 0, refusalCount-1)
	for r := Accepted + 1; r < refusalCount; r++ {
		out = append(out, r)
	}
	return out
}
