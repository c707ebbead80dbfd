package qualys_test

import (
	"testing"
)

// Notices of the end of an API version, as superseded versions have them in each answer: paging
// goes on, and the last page is whole.
func TestFurtherNotices(t *testing.T) {
	const one = `<HOST_LIST><HOST><ID>41</ID><DETECTION_LIST><DETECTION><QID>7</QID></DETECTION></DETECTION_LIST></HOST></HOST_LIST>`
	const more = `<WARNING><CODE>1980</CODE><TEXT>1000 record limit exceeded. Use URL to get next batch of results.</TEXT><URL><![CDATA[https://q/api/5.0/fo/asset/host/vm/detection/?action=list&truncation_limit=1000&id_min=100]]></URL></WARNING>`
	for _, text := range []string{
		"This API version is deprecated. Please update your systems to use version 6.0 before 30 June 2027.",
		"As part of Qualys API lifecycle management, this API version is deprecated. Please migrate to version 6.0.",
		"As part of API versioning, version 5.0 of this API will reach End of Life on 30 June 2027. Please use version 6.0.",
		"Version 5.0 will reach End of Life on 30 June 2027 on all Qualys API servers. Please use version 6.0.",
		"This API version has reached its End of Support. Some parts of the API may not work after 30 June 2027.",
		"This API version is deprecated. Update all client systems and scripts to version 6.0.",
	} {
		warning := "<WARNING><TEXT>" + text + "</TEXT></WARNING>"
		for name, doc := range map[string]string{"in front": warning + one + more, "behind": one + warning + more, "behind both": one + more + warning} {
			if _, p, err := decode(t, page(doc)); err != nil || p.Next != 100 {
				t.Errorf("%q %s: next %d, %v", text, name, p.Next, err)
			}
		}
		if _, p, err := decode(t, page(one+warning)); err != nil || p.Doubt != "" {
			t.Errorf("%q on the last page: %+v, %v", text, p, err)
		}
	}
}

// Notices of the end of an API version that were harmless before.
func TestFurtherNoticesOfTheEnd(t *testing.T) {
	const one = `<HOST_LIST><HOST><ID>41</ID><DETECTION_LIST><DETECTION><QID>7</QID></DETECTION></DETECTION_LIST></HOST></HOST_LIST>`
	for _, text := range []string{
		"Version 5.0 of this API is deprecated and will be unavailable from 30 June 2027. Please use version 6.0.",
		"This API version will reach End of Life on 30 June 2027. Please migrate to version 6.0 to avoid service interruption.",
		"This API version is deprecated. Failure to migrate to version 6.0 before 30 June 2027 may impact your integrations.",
		"This API version is deprecated. Calls to it will start failing after 30 June 2027.",
		"This API version is deprecated. Requests to it fail after 30 June 2027.",
		"This API version is deprecated and will become unavailable after June 2027.",
		"This API version will be retired; to prevent service interruptions upgrade to version 6.0.",
	} {
		warning := "<WARNING><TEXT>" + text + "</TEXT></WARNING>"
		if _, p, err := decode(t, page(one+warning)); err != nil || p.Doubt != "" {
			t.Errorf("%q: %+v, %v", text, p, err)
		}
		if _, p, err := decode(t, page(warning)); err != nil || p.Doubt != "" {
			t.Errorf("%q alone: %+v, %v", text, p, err)
		}
	}
}
