package qualys_test

import (
	"strings"
	"testing"
)

// Notices of an end of service: none of them breaks an answer, and where it is empty none
// keeps the window open. Those that are made of words of such notices ask for no more.
func TestNotices(t *testing.T) {
	for text, known := range map[string]bool{
		"Host List Detection API version 5.0 will reach End of Service on 30 June 2027. Please upgrade to 6.0.":     true,
		"The Host List VM Detection API v2.0 is deprecated.":                                                        true,
		"This API version is deprecated. Please contact Qualys Support or your TAM.":                                true,
		"KnowledgeBase API 4.0 will be End of Life. For details see release notes.":                                 true,
		"This API version has been deprecated, and is scheduled for End of Life on 2027-06-30.":                     true,
		"Version 5.0 – End of Support: 30 June 2027 – use version 6.0":                                              true,
		"The API’s version 5.0 is deprecated.":                                                                      true,
		"API 5.0 is deprecated and calls will return errors after June 2027.":                                       false,
		"This version of the API has reached End-of-Support. No updates or fixes will be provided.":                 true,
		"This API version is deprecated. Please migrate to version 6.0 to continue using the API.":                  true,
		"Host List Detection API v5.0 will reach End of Service on June 30, 2027. Upgrade to v6.0 to avoid errors.": true,
		"API 5.0 is deprecated. To continue receiving detections, move to 6.0 before 30 June 2027.":                 true,
		"This API version is deprecated. Only version 6.0 will be supported after June 2027.":                       true,
		"EOL for Detection API v5.0 is 2027-06-30. Contact Qualys Support if you are unable to migrate.":            true,
		"This API version will be End of Life (EOL) in 6 months. Use version 6.0 for better data and performance.":  true,
		"This endpoint (/api/2.0/fo/asset/host/vm/detection/?action=list) is deprecated.":                           true,
		"End of Service (EOS) notification: Asset Host API 4.0":                                                     false,
	} {
		one := `<HOST_LIST><HOST><ID>41</ID><DETECTION_LIST><DETECTION><QID>7</QID></DETECTION></DETECTION_LIST></HOST></HOST_LIST>`
		warning := `<WARNING><TEXT>` + text + `</TEXT></WARNING>`
		_, p, err := decode(t, page(one+warning))
		if want := map[bool]uint64{true: 0, false: 42}[known]; err != nil || p.Doubt != "" || p.Next != want {
			t.Errorf("%q behind a host: got %+v, %v, want next %d", text, p, err, want)
		}
		_, p, err = decode(t, page(warning))
		if err != nil || p.Next != 0 || !strings.Contains(p.Warning, text[:10]) {
			t.Errorf("%q alone: got %+v, %v, want a last page", text, p, err)
		}
	}
	for _, text := range []string{
		"API 5.0 has reached its End of Support: 1 of 500 available.",
		"API 5.0 is deprecated: the call has ended at 41 of 500.",
		"API 5.0 is End of Life: the request ended before its end.",
		"This version is deprecated. Use id_min 42.",
		"This version is deprecated: results_truncated",
		"API 5.0: End of Service /partial",
		"host_status is deprecated: 12 have been removed.",
		"This version is obsolete: read 41 of 500, call again_from 42.",
	} {
		one := `<HOST_LIST><HOST><ID>41</ID><DETECTION_LIST><DETECTION><QID>7</QID></DETECTION></DETECTION_LIST></HOST></HOST_LIST>`
		if _, p, err := decode(t, page(one+`<WARNING><TEXT>`+text+`</TEXT></WARNING>`)); err == nil && p.Next == 0 {
			t.Errorf("%q: got a last page", text)
		}
	}
}
