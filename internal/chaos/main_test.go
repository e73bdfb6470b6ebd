package chaos_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/authfence/authfence/internal/chaos"
	"github.com/authfence/authfence/internal/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(closing{m})) }

// closing ends what tests share, before leaks are looked for.
type closing struct{ *testing.M }

func (m closing) Run() int {
	code := m.M.Run()
	if err := chaos.CloseShared(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}
