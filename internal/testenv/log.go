package testenv

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
)

// serverLog is what a server writes to its standard output and error: to a file, or to the caller's writer.
type serverLog struct {
	path string
	file *os.File
}

func (l *serverLog) attach(cmd *exec.Cmd, writer io.Writer) error {
	if writer != nil {
		cmd.Stdout, cmd.Stderr = writer, writer
		return nil
	}
	file, err := os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open server log: %w", err)
	}
	l.file = file
	cmd.Stdout, cmd.Stderr = file, file
	return nil
}

// close closes our copy; the server has its own.
func (l *serverLog) close() {
	if l.file != nil {
		_ = l.file.Close()
	}
}

// tail returns the end of the log for an error message.
func (l *serverLog) tail() string {
	text, err := os.ReadFile(l.path)
	if err != nil || len(text) == 0 {
		return ""
	}
	const most = 2000
	if len(text) > most {
		text = text[len(text)-most:]
	}
	return ": its log ends:\n" + string(bytes.TrimSpace(text))
}
