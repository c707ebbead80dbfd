package settings

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

// schedules reads NCRONTAB: six fields, of which the first is seconds.
var schedules = cron.NewParser(cron.Second | cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow)

const acceptedSchedule = "Accepted: NCRONTAB with six fields {second} {minute} {hour} {day} {month} {weekday}, such as 0 */5 * * * *"

// A Schedule tells when something is due.
type Schedule interface {
	// Next is the first time behind t; zero: there is none.
	Next(t time.Time) time.Time
}

// ParseSchedule reads a schedule as the Functions host does (NCrontab). The host itself
// would disable the function of a wrong one without a word. A range in the wrong order
// is refused, although the host takes it: 22-6 is 6-22 to it, which nobody means.
func ParseSchedule(v string) (Schedule, error) {
	// The host parts fields by blanks only.
	fields := strings.FieldsFunc(strings.ToLower(v), func(r rune) bool { return r == ' ' })
	if len(fields) != 6 {
		// Not repeated: it may be a key that was pasted into the wrong place.
		return nil, fmt.Errorf("it has %d fields. %s", len(fields), acceptedSchedule)
	}
	for i, field := range fields {
		if !fieldForm.MatchString(field) {
			return nil, fmt.Errorf("%q is not a schedule: the Functions host does not take %q. %s", clip(v), clip(field), acceptedSchedule)
		}
		if i >= 4 {
			fields[i] = nameForm.ReplaceAllStringFunc(field, func(name string) string { return shortName(name, names[i]) })
		}
	}
	s, err := parseFields(fields)
	if err != nil {
		return nil, fmt.Errorf("%q is not a schedule: %w. %s", clip(v), err, acceptedSchedule)
	}
	if s.Next(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)).IsZero() {
		return nil, fmt.Errorf("%q never comes. %s", clip(v), acceptedSchedule)
	}
	return s, nil
}

var (
	// A field is a list of * or values or ranges, each perhaps with a step.
	fieldForm = regexp.MustCompile(`^(\*|[0-9a-z]+(-[0-9a-z]+)?)(/[0-9]+)?(,(\*|[0-9a-z]+(-[0-9a-z]+)?)(/[0-9]+)?)*$`)
	nameForm  = regexp.MustCompile(`[a-z]+`)
	// names of months and weekdays, by the place of their field.
	names = map[int][]string{
		4: {"january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november", "december"},
		5: {"sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"},
	}
)

// shortName is the name that begins so, as the library knows it: the host takes any
// beginning of a name. One that is none is left for the library to refuse.
func shortName(begin string, names []string) string {
	for _, name := range names {
		if strings.HasPrefix(name, begin) {
			return name[:3]
		}
	}
	return begin
}

// parseFields reads a schedule of which day and weekday have to be right both; the
// library takes either of them.
func parseFields(fields []string) (Schedule, error) {
	day, weekday := fields[3], fields[5]
	if strings.HasPrefix(day, "*") || strings.HasPrefix(weekday, "*") {
		s, err := schedules.Parse(strings.Join(fields, " "))
		return s, err //nolint:wrapcheck // the caller says of what
	}
	of := func(day, weekday string) (cron.Schedule, error) {
		return schedules.Parse(strings.Join([]string{fields[0], fields[1], fields[2], day, fields[4], weekday}, " ")) //nolint:wrapcheck // likewise
	}
	days, err := of(day, "*")
	weekdays, weekdayErr := of("*", weekday)
	if err := errors.Join(err, weekdayErr); err != nil {
		return nil, err
	}
	return both{days, weekdays}, nil
}

// both comes when both of two schedules do.
type both struct{ a, b cron.Schedule }

// maxSteps of the two schedules towards each other: a day of one month that is a
// certain weekday comes within 40 years, some 500 days of either.
const maxSteps = 5000

func (s both) Next(t time.Time) time.Time {
	a, b := s.a.Next(t), s.b.Next(t)
	for range maxSteps {
		switch {
		case a.IsZero() || b.IsZero():
			return time.Time{}
		case a.Equal(b):
			return a
		case a.Before(b):
			a = s.a.Next(b.Add(-time.Second))
		default:
			b = s.b.Next(a.Add(-time.Second))
		}
	}
	return time.Time{}
}
