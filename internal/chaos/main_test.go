package chaos_test

import (
	"os"
	"testing"

	"github.com/authfence/authfence/internal/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }
