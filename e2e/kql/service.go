package kql

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
)

// service is the language service. It takes seconds to load, so one serves the whole
// process: it ends when the process does, and with it the pipe to it.
type service struct {
	mu        sync.Mutex
	questions io.Writer
	answers   *bufio.Reader
}

var started = sync.OnceValues(func() (*service, error) {
	_, here, _, _ := runtime.Caller(0)
	cmd := exec.Command("node", filepath.Join(filepath.Dir(here), "kusto.js"))
	cmd.Stderr = os.Stderr
	questions, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	answers, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	return &service{questions: questions, answers: bufio.NewReader(answers)}, cmd.Start()
})

// ask has a question, one line of JSON, answered.
func ask(question []byte) ([]byte, error) {
	s, err := started()
	if err != nil {
		return nil, fmt.Errorf("start it: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.questions.Write(append(question, '\n')); err != nil {
		return nil, err
	}
	answer, err := s.answers.ReadBytes('\n')
	if errors.Is(err, io.EOF) {
		err = errors.New("it has ended without an answer; it says why on stderr")
	}
	return answer, err
}
