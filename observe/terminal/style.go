package terminal

import (
	"strings"
	"unicode"
)

// style is how a line looks where there are colours.
type style string

const (
	plain style = ""
	dim   style = "\x1b[2m"
	bold  style = "\x1b[1m"
	warn  style = "\x1b[33m"
	bad   style = "\x1b[31m"
	good  style = "\x1b[32m"
)

// clean keeps control characters, which another process may have written, from the
// terminal.
func clean(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, text)
}

func (s style) of(text string, color bool) string {
	if !color || s == plain {
		return text
	}
	line, ended := strings.CutSuffix(text, "\n")
	text = string(s) + line + "\x1b[0m"
	if ended {
		text += "\n"
	}
	return text
}
