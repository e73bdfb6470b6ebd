// Command clock prints, once a line of its input, how far the wall clock that it
// sees is from its monotonic one, and whether the latter ever went back.
package main

import (
	"bufio"
	"fmt"
	"os"
	"time"
)

func main() {
	base := time.Now()
	last := base
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		time.Sleep(20 * time.Millisecond) // the file is looked at every few
		now := time.Now()
		if now.Before(last) {
			fmt.Println("the monotonic clock went back")
			return
		}
		last = now
		fmt.Println(now.Round(0).Sub(base.Round(0)) - now.Sub(base))
	}
}
