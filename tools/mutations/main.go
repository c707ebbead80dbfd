// Command mutations shows what the simulation finds: it puts one fault after another into
// the program (list.go), plays stories until one breaks a law, and tells its seed. A fault
// that no story shows is a blind spot of the simulation.
//
// The tree stays as it is: the changed files reach the compiler as an overlay.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A mutation is a fault of the program: in a file, one text in place of another.
type mutation struct {
	name string
	// what the program does, or does not do any more.
	what string
	// file under handler/internal.
	file     string
	old, new string
}

func main() {
	seeds := flag.Int("seeds", 20_000, "how many stories are played at most, for each mutation")
	first := flag.Uint64("first", 1, "the seed of the first of them")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, *seeds, *first, flag.Args())
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutations:", err)
		os.Exit(1)
	}
}

// run plays the mutations of these names; of none: all.
func run(ctx context.Context, seeds int, first uint64, names []string) error {
	chosen := mutations
	if len(names) > 0 {
		chosen = slices.DeleteFunc(slices.Clone(mutations), func(m mutation) bool { return !slices.Contains(names, m.name) })
		if len(chosen) != len(names) {
			return fmt.Errorf("%d of these names are mutations: see tools/mutations/list.go", len(chosen))
		}
	}
	folder, err := os.MkdirTemp("", "mutations")
	if err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	defer os.RemoveAll(folder) //nolint:errcheck // of the system's temporary files
	sound := filepath.Join(folder, "sound.test")
	if err := build(ctx, sound, ""); err != nil {
		return err
	}
	missed := 0
	for _, m := range chosen {
		began := time.Now()
		seed, law, err := m.play(ctx, folder, seeds, first)
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		took := time.Since(began).Round(time.Second)
		if seed == 0 {
			missed++
			fmt.Printf("NOT FOUND  %-34s in %d stories, %s: %s\n", m.name, seeds, took, m.what)
			continue
		}
		// A story that breaks a law without it, too, shows nothing.
		if again, _, err := stories(ctx, sound, 1, seed); err != nil || again != 0 {
			return fmt.Errorf("seed %d breaks a law of the program as it is, too: %w", seed, errors.Join(err, errUnsound))
		}
		fmt.Printf("found      %-34s by seed %d, %s: %s\n           %s\n", m.name, seed, took, m.what, law)
	}
	if missed > 0 {
		return fmt.Errorf("%d of %d are not found", missed, len(chosen))
	}
	return nil
}

var errUnsound = errors.New("mend that first")

// play plays stories with the mutation until one breaks a law, and returns its seed; zero:
// none does.
func (m mutation) play(ctx context.Context, folder string, seeds int, first uint64) (seed uint64, law string, err error) {
	path, err := filepath.Abs(filepath.Join("handler", "internal", m.file))
	if err != nil {
		return 0, "", fmt.Errorf("find the file: %w", err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, "", fmt.Errorf("read the file: %w", err)
	}
	if n := strings.Count(string(text), m.old); n != 1 {
		return 0, "", fmt.Errorf("what it changes stands %d times in %s: the code has changed, and so has the mutation to", n, m.file)
	}
	changed := filepath.Join(folder, "changed.go")
	if err := os.WriteFile(changed, []byte(strings.Replace(string(text), m.old, m.new, 1)), 0o600); err != nil {
		return 0, "", fmt.Errorf("write the changed file: %w", err)
	}
	overlay := filepath.Join(folder, "overlay.json")
	doc, err := json.Marshal(map[string]any{"Replace": map[string]string{path: changed}})
	if err == nil {
		err = os.WriteFile(overlay, doc, 0o600)
	}
	if err != nil {
		return 0, "", fmt.Errorf("write the overlay: %w", err)
	}
	binary := filepath.Join(folder, "mutated.test")
	if err := build(ctx, binary, overlay); err != nil {
		return 0, "", err
	}
	return stories(ctx, binary, seeds, first)
}

// build compiles the stories.
func build(ctx context.Context, binary, overlay string) error {
	build := exec.CommandContext(ctx, "go", "test", "-c", "-overlay", overlay, "-o", binary, "./handler")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("compile: %w\n%s", err, out)
	}
	return nil
}

// stories plays stories until one breaks a law, and returns its seed and the law; zero:
// none does.
func stories(ctx context.Context, binary string, seeds int, first uint64) (seed uint64, law string, err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	play := exec.CommandContext(ctx, binary, "-test.run", "^TestStories$", "-test.v", "-test.timeout", "24h",
		"-seeds", strconv.Itoa(seeds), "-first", strconv.FormatUint(first, 10))
	play.Dir = "handler"
	out, err := play.StdoutPipe()
	if err != nil {
		return 0, "", fmt.Errorf("play: %w", err)
	}
	if err := play.Start(); err != nil {
		return 0, "", fmt.Errorf("play: %w", err)
	}
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	last := ""
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if _, number, ok := strings.Cut(line, "again: make simulate SEEDS=1 FIRST="); ok {
			if seed, err = strconv.ParseUint(number, 10, 64); err != nil {
				return 0, "", fmt.Errorf("read the seed: %w", err)
			}
			stop() // it would play on, to tell the story in short
			_ = play.Wait()
			return seed, law, nil
		}
		if strings.HasSuffix(last, "laws broken:") {
			law = line
		}
		if line != "" {
			last = line
		}
	}
	if err := play.Wait(); err != nil {
		return 0, "", fmt.Errorf("play: %w: %s", err, last)
	}
	return 0, "", nil
}
