package simulator_test

import (
	"testing"

	"qualys-sentinel/handler/internal/simulator"
)

// Text that looks like something else lands in another column only where it looks so
// from its first character to its last.
func TestFurtherCollectorColumns(t *testing.T) {
	for in, want := range map[string]string{
		// GUIDs in their spellings.
		`{"A":"3F2504E0-4F89-41D3-9A0C-0305E82C3301"}`:   `{"A_g":"3F2504E0-4F89-41D3-9A0C-0305E82C3301"}`,
		`{"A":"00000000-0000-0000-0000-000000000000"}`:   `{"A_g":"00000000-0000-0000-0000-000000000000"}`,
		`{"A":"3f2504e04f8941d39a0c0305e82c3301"}`:       `{"A_g":"3f2504e0-4f89-41d3-9a0c-0305e82c3301"}`,
		`{"A":"3f2504e0-4f89-41d3-9a0c-0305e82c330"}`:    `{"A_s":"3f2504e0-4f89-41d3-9a0c-0305e82c330"}`,
		`{"A":"3f2504e0-4f89-41d3-9a0c-0305e82c33011"}`:  `{"A_s":"3f2504e0-4f89-41d3-9a0c-0305e82c33011"}`,
		`{"A":"3f2504e0-4f89-41d3-9a0c-0305e82c330g"}`:   `{"A_s":"3f2504e0-4f89-41d3-9a0c-0305e82c330g"}`,
		`{"A":"x3f2504e0-4f89-41d3-9a0c-0305e82c3301"}`:  `{"A_s":"x3f2504e0-4f89-41d3-9a0c-0305e82c3301"}`,
		`{"A":"3f2504e0-4f89-41d3-9a0c-0305e82c3301."}`:  `{"A_s":"3f2504e0-4f89-41d3-9a0c-0305e82c3301."}`,
		`{"A":"3f2504e0-4f89-41d3-9a0c-0305e82c3301\n"}`: `{"A_s":"3f2504e0-4f89-41d3-9a0c-0305e82c3301\n"}`,
		`{"A":"i-0123456789abcdef0"}`:                    `{"A_s":"i-0123456789abcdef0"}`,
		`{"A":"12345678901234567890123456789012"}`:       `{"A_g":"12345678-9012-3456-7890-123456789012"}`,
		// Dates.
		`{"A":"2026-11-26T10:00:00.5Z"}`:    `{"A_t":"2026-11-26T10:00:00.5Z"}`,
		`{"A":"2026-11-26T12:00:00+02:00"}`: `{"A_t":"2026-11-26T10:00:00Z"}`,
		`{"A":"2026-02-30T10:00:00Z"}`:      `{"A_s":"2026-02-30T10:00:00Z"}`,
		`{"A":"2026-11-26"}`:                `{"A_s":"2026-11-26"}`,
		`{"A":"10:00:00Z"}`:                 `{"A_s":"10:00:00Z"}`,
		`{"A":"26/11/2026"}`:                `{"A_s":"26/11/2026"}`,
		// Numbers and truths as text stay text; others do not.
		`{"A":"1.5"}`:        `{"A_s":"1.5"}`,
		`{"A":"true"}`:       `{"A_s":"true"}`,
		`{"A":"null"}`:       `{"A_s":"null"}`,
		`{"A":"0x1F"}`:       `{"A_s":"0x1F"}`,
		`{"A":"NaN"}`:        `{"A_s":"NaN"}`,
		`{"A":0,"B":false}`:  `{"A_d":0,"B_b":false}`,
		`{"A":" "}`:          `{"A_s":" "}`,
		`{"A":"{\"a\":1}"}`:  `{"A_s":"{\"a\":1}"}`,
		`{"Category":"x"}`:   `{"Category":"x"}`,
		`{"IpAddress":"::"}`: `{"IPAddress":"::"}`,
	} {
		if got, _, err := simulator.CollectorRow([]byte(in)); err != nil || string(got) != want {
			t.Errorf("%s: got %s, %v, want %s", in, got, err, want)
		}
	}
}
