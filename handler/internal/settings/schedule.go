package settings

import (
	"fmt"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

// schedules reads NCRONTAB: six fields, of which the first is seconds.
var schedules = cron.NewParser(cron.Second | cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow)

// dayNames are what the Functions host takes, and cron's library knows in short only.
var dayNames = strings.NewReplacer(
	"january", "jan", "february", "feb", "march", "mar", "april", "apr", "june", "jun", "july", "jul", "august", "aug",
	"september", "sep", "october", "oct", "november", "nov", "december", "dec",
	"sunday", "sun", "monday", "mon", "tuesday", "tue", "wednesday", "wed", "thursday", "thu", "friday", "fri", "saturday", "sat",
)

const acceptedSchedule = "Accepted: NCRONTAB with six fields {second} {minute} {hour} {day} {month} {weekday}, such as 0 */5 * * * *"

// ParseSchedule reads a schedule as the Functions host does. The host itself would
// disable the function of a wrong one without a word. A range in the wrong order is
// refused, although the host takes it: 22-6 is 6-22 to it, which nobody means.
func ParseSchedule(v string) (cron.Schedule, error) {
	fields := strings.Fields(strings.ToLower(v))
	if len(fields) != 6 {
		// Not repeated: it may be a key that was pasted into the wrong place.
		return nil, fmt.Errorf("it has %d fields. %s", len(fields), acceptedSchedule)
	}
	if strings.ContainsAny(v, "?=@#") || strings.Contains(v, ",,") {
		return nil, fmt.Errorf("%q has characters that the Functions host does not take. %s", clip(v), acceptedSchedule)
	}
	s, err := schedules.Parse(dayNames.Replace(strings.Join(fields, " ")))
	if err != nil {
		return nil, fmt.Errorf("%q is not a schedule: %w. %s", clip(v), err, acceptedSchedule)
	}
	if s.Next(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)).IsZero() {
		return nil, fmt.Errorf("%q never comes. %s", clip(v), acceptedSchedule)
	}
	return s, nil
}
