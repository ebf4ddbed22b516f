// Package archtest holds the rules of the project as tests: which package may
// import which, what each program may link, that every package has a doc
// comment, and which phrases no text uses.
package archtest
