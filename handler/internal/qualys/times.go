package qualys

import (
	"encoding/binary"
	"fmt"
	"strings"
	"time"
)

// maxAhead is how far the time that an answer states may be ahead of its Date
// header: both are of Qualys' servers.
const maxAhead = time.Hour

// answerTime is an answer's time by Qualys' clock: the earlier of its DATETIME
// and its Date header. A DATETIME far ahead of that is refused: a window that
// ended there would make the next one miss all that comes before.
func answerTime(text string, date time.Time) (time.Time, error) {
	at, ok := parseTime(strings.TrimSpace(text))
	switch {
	case !ok:
		return time.Time{}, notUnderstood(fmt.Sprintf("DATETIME is %.40q", text))
	case !date.IsZero() && at.Sub(date) > maxAhead:
		return time.Time{}, &Error{Kind: Refused, Text: fmt.Sprintf("the answer states %s as its time and %s in its Date header", at.UTC().Format(timeForm), date.UTC().Format(timeForm)),
			Advice: "the clock of Qualys, or of a proxy, is wrong: nothing is read until they agree, and nothing is lost"}
	case !date.IsZero() && date.Before(at):
		return date.UTC(), nil
	}
	return at.UTC(), nil
}

// timeForms are the forms of a datetime that say which moment they mean. Qualys' FO API
// writes the first, without a fraction; its other APIs others. Databases write offsets
// of hours alone, and some programs leave out the seconds.
var timeForms = func() (forms []string) {
	for _, clock := range []string{"15:04:05", "15:04"} {
		for _, between := range []string{"T", " "} {
			for _, offset := range []string{"Z07:00", "Z0700", "Z07"} {
				forms = append(forms, "2006-01-02"+between+clock+offset)
			}
		}
	}
	return forms
}()

// maxTime is longer than any datetime.
const maxTime = 48

// parseTime reads a datetime in any of these forms, with a fraction or without.
func parseTime(text string) (at time.Time, ok bool) {
	if len(text) > maxTime {
		return at, false
	}
	text = strings.ToUpper(text) // t and z, which RFC 3339 allows
	for _, form := range timeForms {
		if at, err := time.Parse(form, text); err == nil {
			at = at.UTC()
			return at, at.Year() > 0 && at.Year() < 10_000
		}
	}
	return at, false
}

// normalTime is the form in which a column has a datetime: in UTC, with a fraction if
// there is one, as fine as the column takes, 100 nanoseconds.
func normalTime(at time.Time) string {
	return at.Truncate(100 * time.Nanosecond).Format("2006-01-02T15:04:05.9999999Z")
}

// The form of a datetime, in words of 8, 8 and 4 bytes: what stands between the
// digits, and where the digits are.
const (
	timeText   = "0000-00-00T00:00:00Z"
	timeWord1  = 0x2d30302d30303030 // 0000-00- as a little-endian number
	timeWord2  = 0x30303a3030543030 // 00T00:00
	timeWord3  = 0x5a30303a         // :00Z
	timeDigit1 = 0x00ffff00ffffffff
	timeDigit2 = 0xffff00ffff00ffff
	timeDigit3 = 0x00ffff00
)

// badDigits is not zero if w differs from form elsewhere than in digits, or has
// anything but digits there.
func badDigits(w, form, digits uint64) uint64 {
	v := w ^ form
	// A digit is at most 9 now; the sum has the high bit of a byte set beyond it.
	return v&^digits | (v|(v&digits+0x7676767676767676&digits))&0x8080808080808080
}

// validTime tells whether s is YYYY-MM-DDTHH:MM:SSZ.
func validTime(s []byte) bool {
	if len(s) != len(timeText) {
		return false
	}
	bad := badDigits(binary.LittleEndian.Uint64(s), timeWord1, timeDigit1) |
		badDigits(binary.LittleEndian.Uint64(s[8:]), timeWord2, timeDigit2) |
		badDigits(uint64(binary.LittleEndian.Uint32(s[16:])), timeWord3, timeDigit3)
	if bad != 0 {
		return false
	}
	two := func(i int) int { return int(s[i]-'0')*10 + int(s[i+1]-'0') }
	month, day := two(5), two(8)
	if day > 28 { // only then does it matter which month it is
		_, err := time.Parse(time.RFC3339, string(s))
		return err == nil
	}
	return month >= 1 && month <= 12 && day >= 1 && two(11) <= 23 && two(14) <= 59 && two(17) <= 59
}
