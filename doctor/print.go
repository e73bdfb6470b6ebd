package doctor

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// Width of what Print writes, and where its texts begin. Commands are not broken: they are to be pasted.
const (
	width  = 80
	indent = 11
)

// colours by level, for a terminal.
var colours = map[Level]string{OK: "\x1b[32m", Note: "\x1b[36m", Warning: "\x1b[33m", Problem: "\x1b[31m"}

// Print writes the report for a person, grouped by part.
func (r *Report) Print(out io.Writer, coloured bool) error {
	var b strings.Builder
	last := ""
	for _, f := range r.Findings {
		part, name, _ := strings.Cut(f.Check, ".")
		if part != last {
			fmt.Fprintf(&b, "%s\n", part)
			last = part
		}
		level := fmt.Sprintf("%-9s", f.Level)
		if coloured {
			level = colours[f.Level] + level + "\x1b[0m"
		}
		b.WriteString("  " + level)
		write(&b, strings.ReplaceAll(name, "_", " ")+": "+f.Found)
		for _, line := range []struct{ word, text string }{{"why", f.Why}, {"mend", f.Mend}} {
			if line.text != "" {
				b.WriteString(strings.Repeat(" ", indent))
				write(&b, line.word+": "+line.text)
			}
		}
		if f.Command != "" {
			b.WriteString(strings.Repeat(" ", indent) + "$ " + f.Command + "\n")
		}
	}
	var counts []string
	for i := len(levels) - 1; i >= 0; i-- {
		if n := r.Counts[levels[i]]; n > 0 {
			word := string(levels[i])
			if n > 1 && levels[i] != OK {
				word += "s"
			}
			counts = append(counts, fmt.Sprintf("%d %s", n, word))
		}
	}
	fmt.Fprintf(&b, "\n%s, within %s\n", strings.Join(counts, ", "), (time.Duration(r.Took) * time.Millisecond).Round(100*time.Millisecond))
	_, err := io.WriteString(out, b.String())
	return err
}

// write breaks a text at spaces; the cursor stands at indent.
func write(b *strings.Builder, text string) {
	column := indent
	for i, word := range strings.Fields(text) {
		switch n := len([]rune(word)); {
		case i == 0:
			column += n
		case column+1+n > width:
			b.WriteString("\n" + strings.Repeat(" ", indent))
			column = indent + n
		default:
			b.WriteByte(' ')
			column += 1 + n
		}
		b.WriteString(word)
	}
	b.WriteByte('\n')
}
