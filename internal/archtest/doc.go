// Package archtest holds the rules of this house as tests: who may import
// whom, what each program may link, that every package says what it is for.
package archtest
