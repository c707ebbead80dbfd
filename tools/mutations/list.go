package main

// mutations are faults that the program once had, or might get, where stories meet them.
// They are read together with the code that they change: whoever changes that changes them.
var mutations = []mutation{
	// Documents that are no whole answer.
	{
		name: "void-counts", what: "what has come of an answer that says of itself that it is not whole counts",
		file: "ingest/paging.go",
		old:  "if isVoid(err) || p.inDoubt {", new: "if isVoid(err) && p.run == nil || p.inDoubt {",
	},
	{
		name: "envelope-counts", what: "what stands in front of a stray element counts",
		file: "qualys/envelope.go",
		old:  "\te := notUnderstood(why)\n\te.void = true", new: "\te := notUnderstood(why)",
	},
	{
		name: "failed-envelope-counts", what: "a warning with the code of an error is passed over",
		file: "qualys/envelope.go",
		old:  "case e.failed != nil:\n", new: "case e.failed != nil && highest < 0:\n",
	},
	{
		name: "link-before-bare", what: "of two warnings that say that more follows, only the link counts",
		file: "qualys/envelope.go",
		old:  "p.Next = min(e.next, highest+1) //", new: "p.Next = e.next //",
	},
	{
		name: "doubt-ignored", what: "a page whose end may say that it is not whole is saved as it comes",
		file: "ingest/delivery.go",
		old:  "if d.extra || d.doubted == nil {", new: "if d.doubted == nil || d.run != nil {",
	},
	{
		name: "doubt-not-saved", what: "that a page is in doubt is not saved before its end is read",
		file: "ingest/paging.go",
		old:  "\tp.d.mu.Unlock()\n\treturn p.saveVoid()", new: "\tp.d.mu.Unlock()\n\treturn nil",
	},
	{
		name: "void-not-saved", what: "that a page counts for nothing is not saved",
		file: "ingest/paging.go",
		old:  "\tif err := p.d.saveAtLast(); err != nil {", new: "\tif err := error(nil); err != nil {",
	},
	{
		name: "void-not-held", what: "the cursor is set back behind a void page, and not held there",
		file: "ingest/delivery.go",
		old:  "\td.hold(to)\n", new: "\td.mu.Lock()\n\tif d.run.state.Window != nil {\n\t\td.setCursor(to)\n\t}\n\td.unsaved = true\n\td.mu.Unlock()\n",
	},
	{
		name: "void-page-moves-the-cursor", what: "a void page is asked for again from where it had got to",
		file: "ingest/paging.go",
		old:  "\tfrom := p.q.From\n\tif p.unproven != 0 {", new: "\tfrom := p.d.lastDone + 1\n\tif p.unproven != 0 {",
	},
	{
		name: "unproven-forgotten", what: "a page whose end was not seen counts, whatever its end says later",
		file: "ingest/paging.go",
		old:  "\t\tp.unproven = max(1, p.q.From)", new: "\t\tp.unproven = 0",
	},

	{
		name: "warning-forgotten", what: "a warning is forgotten where something else ends the answer",
		file: "qualys/decoder.go",
		old:  "(d.envelope.doubtful() || d.began", new: "(d.began",
	},
	{
		name: "doubt-told-late", what: "a warning in front of the list is told at its end only",
		file: "qualys/decoder.go",
		old:  "\tif !d.envelope.doubtful() {\n\t\treturn nil", new: "\tif !d.envelope.doubtful() || d.sink != nil {\n\t\treturn nil",
	},
	{
		name: "link-excuses-all", what: "a link to more makes its warning harmless, whatever it says",
		file: "qualys/envelope.go",
		old:  "of == unknown && failure.MatchString(w.text):", new: "of == unknown && !follows && failure.MatchString(w.text):",
	},
	{
		name: "anything-dispels", what: "whatever comes dispels a doubt",
		file: "qualys/detections.go",
		old:  "f.any = f.any || id >= f.from", new: "f.any = true || id >= f.from",
	},
	{
		name: "text-among-ids", what: "text between the elements of a list of ids is passed over",
		file: "qualys/idset.go",
		old:  "\tif text := strings.TrimSpace(string(raw)); text != \"\" {", new: "\tif text := strings.TrimSpace(string(raw)); text == \"never\" {",
	},

	// Slow answers, and parents that fail by themselves.
	{
		name: "slow-not-given-up", what: "a page that comes to no safe point is waited for",
		file: "ingest/isolation.go",
		old:  "func() { cancel(fmt.Errorf(\"%w: %s\", errStuck, limit.Round(time.Second))) })", new: "func() {})",
	},
	{
		name: "slow-not-looked-for", what: "the one that makes a page slow is not looked for",
		file: "ingest/paging.go",
		old:  "\tp.away = 0\n\tswitch {\n\tcase p.search == nil:\n\t\treturn p.look(ctx, reason)", new: "\tp.away = 0\n\tswitch {\n\tcase p.search == nil:\n\t\treturn nil",
	},
	{
		name: "budget-end-not-counted", what: "that a page has used up the budget is not noted",
		file: "ingest/paging.go",
		old:  "\t\tp.tookTheRest(moved)\n", new: "",
	},
	{
		name: "trouble-forgotten", what: "what a run has found out about a page is not kept",
		file: "ingest/paging.go",
		old:  "func (p *pager) keepTrouble() {\n", new: "func (p *pager) keepTrouble() {\n\tif p != nil {\n\t\treturn\n\t}\n",
	},
	{
		name: "outage-isolates", what: "nobody else is asked for where one after another fails",
		file: "ingest/paging.go",
		old:  "if len(p.d.suspects) == maxSuspects {", new: "if len(p.d.suspects) < 0 {",
	},
	{
		name: "last-blames-nobody", what: "those that fail by themselves at the end of a list are forgotten",
		file: "ingest/paging.go",
		old:  "\t\tp.last = true\n\t\treturn p.d.blame()", new: "\t\tp.last = true\n\t\treturn nil",
	},
	{
		name: "suspects-not-taken-back", what: "the cursor stays behind those that may not be to blame",
		file: "ingest/batching.go",
		old:  "if len(d.suspects) > 0 {", new: "if len(d.suspects) < 0 {",
	},
	{
		name: "isolated-never-retried", what: "an isolated parent is not tried again",
		file: "ingest/isolation.go",
		old:  "if wait := i.Again.Sub(r.Clock.Now()); wait > 0 && wait <= isolatedMost {", new: "if i.Tries >= 0 {",
	},
	{
		name: "isolated-released-before-arrival", what: "an isolated parent is released when it was read, before it has arrived",
		file: "ingest/isolation.go",
		old:  "\t\t\tarrived = append(arrived, i.ID)\n", new: "\t\t\tarrived = append(arrived, i.ID)\n\t\t\td.release(i.ID)\n",
	},

	// Delivery.
	{
		name: "failed-batch-settles", what: "the checkpoint moves behind a batch that was not accepted",
		file: "ingest/batching.go",
		old:  "\t\t\td.fail(err)\n\t\t\treturn\n\t\t}\n\t\td.recycle(b.Body, b.Ends)", new: "\t\t\td.run.Log.Error(err.Error())\n\t\t}\n\t\td.recycle(b.Body, b.Ends)",
	},
	{
		name: "settles-out-of-order", what: "the checkpoint moves with the batch that arrives, whatever is still under way before it",
		file: "ingest/delivery.go",
		old:  "\t\t\ta, ok := d.acked[d.settled]\n\t\t\tif !ok {\n\t\t\t\tbreak\n\t\t\t}\n\t\t\tdelete(d.acked, d.settled)", new: "\t\t\tif len(d.acked) == 0 {\n\t\t\t\tbreak\n\t\t\t}\n\t\t\tvar a arrival\n\t\t\tfor n, one := range d.acked {\n\t\t\t\ta = one\n\t\t\t\tdelete(d.acked, n)\n\t\t\t\tbreak\n\t\t\t}",
	},
	{
		name: "cursor-one-too-far", what: "the cursor passes one parent more than has come",
		file: "ingest/batching.go",
		old:  "\t\tcursor = d.lastDone + 1\n\t}\n\tif len(d.suspects)", new: "\t\tcursor = d.lastDone + 2\n\t}\n\tif len(d.suspects)",
	},
	{
		name: "first-half-error-swallowed", what: "where a refused batch is parted, an error of its first half is lost",
		file: "ingest/sending.go",
		old:  "send, refused); err != nil {\n\t\treturn err\n\t}", new: "send, refused); err != nil && isRefusal(err) {\n\t\treturn err\n\t}",
	},
	{
		name: "table-refuses-all", what: "a table that takes no row does not stop a run",
		file: "ingest/refusals.go",
		old:  "return r.Rows > maxRefusedOnly && r.Others", new: "return r.Rows > maxRefusedOnly && r.Others && r.Rows < 0",
	},
	{
		name: "refusals-not-shared", what: "each run counts anew what a table refuses",
		file: "ingest/delivery.go",
		old:  "if r.state.Refused != nil {", new: "if r.state.Refused != nil && r.state.Refused.Rows < 0 {",
	},
	{
		name: "lost-hold-goes-on", what: "a run that has lost its hold of the checkpoint goes on to send",
		file: "ingest/run.go",
		old:  "\t\t\tstopSending(checkpoint.ErrLost)\n", new: "",
	},
	{
		name: "loss-of-lease-not-noticed", what: "a lease that was not renewed in time is taken for held",
		file: "checkpoint/blob/blob.go",
		old:  "\tenough := leaseTime - every/2\n", new: "\tenough := time.Hour\n",
	},

	// Windows and ledgers.
	{
		name: "window-until-now", what: "a window ends when its first answer is read, not when Qualys made it",
		file: "ingest/batching.go",
		old:  "s.Window = &Window{Until: until,", new: "if now := clocks.Here.Truncate(time.Second); now.After(until) {\n\t\t\tuntil = now\n\t\t}\n\t\ts.Window = &Window{Until: until,",
	},
	{
		name: "window-of-another-source", what: "an unfinished window is continued with other settings",
		file: "ingest/run.go",
		old:  "if w.Source == r.identity() {", new: "if w.Source != \"\" {",
	},
	{
		name: "no-overlap", what: "a window begins at the end of the last one",
		file: "ingest/run.go",
		old:  "after := r.state.Watermark.Add(-r.Overlap).Truncate(time.Second)", new: "after := r.state.Watermark.Truncate(time.Second)",
	},
	{
		name: "recent-of-another-state", what: "rows delivered lately are believed, whatever state they go with",
		file: "ingest/recent.go",
		old:  "if doc.For != goesWith(run) {", new: "if doc.For == \"\" {",
	},
	{
		name: "recent-next-not-taken-up", what: "what the window in work has delivered is forgotten with its run",
		file: "ingest/recent.go",
		old:  "next := doc.Next[:min(len(doc.Next)/8, r.most)*8]", new: "next := doc.Next[:0]",
	},
	{
		name: "recent-before-arrival", what: "rows count as delivered before they have arrived",
		file: "ingest/recent.go",
		old:  "\t\tr.ready = append(r.ready, r.host...)\n", new: "\t\tr.ready = append(r.ready, r.host...)\n\t\tr.now = append(r.now, r.host...)\n",
	},
	{
		name: "obsolete-deleted-before-save", what: "the old index is deleted before the checkpoint names the new one",
		file: "ingest/index.go",
		old:  "\tx.journal, x.header = x.journal[:0], false\n\treturn nil", new: "\tx.journal, x.header = x.journal[:0], false\n\tx.saved(ctx)\n\treturn nil",
	},
	{
		name: "unconfirmed-removals-skipped", what: "removals that cannot be confirmed are passed over at once",
		file: "ingest/removals.go",
		old:  "|| again && r.state.Stalled < stalledRuns {", new: "|| again && r.state.Stalled < 0 {",
	},

	// Limits, logins, requests by hand.
	{
		name: "limits-forgotten", what: "a process does not take over what others have been told to wait",
		file: "qualys/limits.go",
		old:  "\tfor path, k := range rests {\n", new: "\tfor path, k := range rests {\n\t\tif k.Status >= 0 {\n\t\t\tcontinue\n\t\t}\n",
	},
	{
		name: "rest-of-all-not-kept", what: "a rest of all calls is not kept for other processes",
		file: "qualys/limits.go",
		old:  "\tadd(allEndpoints, l.rest)\n", new: "",
	},
	{
		name: "retry-after-ignored", what: "Retry-After is not read",
		file: "qualys/errors.go",
		old:  "if n, err := strconv.Atoi(value); err == nil && n > 0 {", new: "if n, err := strconv.Atoi(value); err == nil && n > 0 && header == nil {",
	},
	{
		name: "wait-unbounded", what: "any wait is believed",
		file: "qualys/errors.go",
		old:  "const maxWait = 65 * time.Minute", new: "const maxWait = 650 * time.Hour",
	},
	{
		name: "slots-not-kept", what: "more calls run at once than Qualys allows",
		file: "qualys/limits.go",
		old:  "return max(1, e.told.Concurrent-1)", new: "return max(1, e.told.Concurrent+1)",
	},
	{
		name: "no-trial", what: "several calls at once try a login that is not known to be good",
		file: "qualys/login.go",
		old:  "\t\tif good {\n", new: "\t\tif good || c != nil {\n",
	},
	{
		name: "refusal-not-kept", what: "a refused login is not kept for other processes",
		file: "qualys/memory.go",
		old:  "\tif c.Memory == nil || !s.hasNews() && !c.limits.unkept() {", new: "\tif c.Memory == nil || !c.limits.unkept() {",
	},
	{
		name: "older-answer-vouches", what: "an answer to a call that began before a login was refused vouches for it",
		file: "qualys/login.go",
		old:  "\treturn r != nil && !as.began.After(r.last())", new: "\treturn r != nil && as.began.IsZero()",
	},
	{
		name: "turn-without-second-look", what: "a call that has waited for its turn does not look what others have met",
		file: "qualys/client.go",
		old:  "\tif waited { //", new: "\tif waited && ctx == nil { //",
	},
	{
		name: "login-tried-behind-a-refusal", what: "a call that has waited for its turn does not look whether the login was refused meanwhile",
		file: "qualys/login.go",
		old:  "\t\tif err := c.checkLogin(ctx); err != nil {\n\t\t\treturn login{}, nil, err\n\t\t}\n", new: "",
	},
	{
		name: "request-taken-without-second-look", what: "a request is carried on as it was read before it was held",
		file: "ondemand/carry.go",
		old:  "\tnow, err := k.read(ctx, k.name(openState, r))\n", new: "\tnow, err := r, error(nil)\n",
	},

	// Chosen by a reader: paging and isolation.
	{
		name: "bounded-page-ends-the-list", what: "a page that was ended in front of an isolated parent is taken for the last of the window",
		file: "ingest/paging.go",
		old:  "if next == 0 && p.q.To != 0 {", new: "if next == 0 && p.q.To != 0 && p.search != nil {",
	},
	{
		name: "retried-from-the-window", what: "an isolated parent is tried again from the start of the window in work, not from where it is missing",
		file: "ingest/isolation.go",
		old:  "\t\tif i.After != nil {\n\t\t\tq.After = *i.After\n\t\t}", new: "\t\tif w := r.state.Window; w != nil && w.After != nil {\n\t\t\tq.After = *w.After\n\t\t}",
	},

	// Chosen by a reader: delivery, batches, ledgers.
	{
		name: "repeated-rows-forgotten", what: "what a window has brought again unchanged, behind its last batch, is not remembered for the next",
		file: "ingest/delivery.go",
		old:  "\tif sealErr == nil {\n\t\td.ledger.delivered(d.ledger.take()) // hosts that brought no new row\n\t}\n", new: "",
	},
	{
		name: "batch-takes-half-hosts", what: "a batch that is full takes the rows of the host in work along, although its page may still break",
		file: "ingest/batching.go",
		old:  "\trows := d.mark\n\tif rows == 0 {", new: "\trows := len(d.ends)\n\tif rows == 0 {",
	},
	{
		name: "broken-host-remembered", what: "rows that were dropped with a host that broke off are remembered as if they had been delivered with the next one",
		file: "ingest/batching.go",
		old:  "\td.ledger.forget()\n\td.inHost = false\n", new: "\td.inHost = false\n",
	},
	{
		name: "journal-behind-the-checkpoint", what: "the checkpoint is saved first, and what the ledger has to keep for it behind that",
		file: "ingest/delivery.go",
		old:  "\tif keep != nil {\n\t\tif err := keep(d.ctx); err != nil {\n\t\t\treturn err\n\t\t}\n\t}\n\td.mu.Lock()\n\td.setCursor(cursor)\n\td.mu.Unlock()\n\treturn d.write(d.ctx)",
		new:  "\td.mu.Lock()\n\td.setCursor(cursor)\n\td.mu.Unlock()\n\tif err := d.write(d.ctx); err != nil || keep == nil {\n\t\treturn err\n\t}\n\treturn keep(d.ctx)",
	},
	{
		name: "full-window-skips-known", what: "a window that sends everything does not send what is known",
		file: "ingest/index.go",
		old:  "known && x.sums[i] == e.sum && (!x.full || x.sent[i] == x.window) {", new: "known && x.sums[i] == e.sum {",
	},
	{
		name: "missing-is-removed", what: "what a whole window has not brought is told as removed although Qualys still has it",
		file: "ingest/removals.go",
		old:  "!isGone && !absent.known {", new: "!isGone && !absent.known && len(missing.witnesses) == 0 {",
	},

	// Chosen by a reader: refusals and dead letters.
	{
		name: "doubt-never-ends", what: "that a destination has accepted a row again is not written down: every later run begins with the doubt",
		file: "ingest/refusals.go",
		old:  "d.accepted, d.refused, d.run.state.Refused = true, Refusals{}, nil", new: "d.accepted, d.refused = true, Refusals{}",
	},
	{
		name: "unkept-letters-count", what: "the checkpoint moves behind refused rows that could not be kept as dead letters",
		file: "ingest/sending.go",
		old:  "name, d.run.Dataset, s.letters); err != nil {\n\t\treturn s.accepted, err\n\t}", new: "name, d.run.Dataset, s.letters); err != nil {\n\t\td.run.Log.Error(\"the dead letters are not kept\", zap.Error(err))\n\t}",
	},
	{
		name: "forbidden-is-refused", what: "a destination that takes no row until somebody gives the identity its role is said to refuse the rows",
		file: "loganalytics/ingestion.go",
		old:  "case s == http.StatusBadRequest, s == http.StatusRequestEntityTooLarge:", new: "case s == http.StatusBadRequest, s == http.StatusForbidden, s == http.StatusRequestEntityTooLarge:",
	},

	// Chosen by a reader: several destinations.
	{
		name: "convoy-begins-with-the-latest", what: "a page that several read begins where the latest of their windows does",
		file: "ingest/convoy.go",
		old:  "if a.q.After.Before(q.After) {", new: "if a.q.After.After(q.After) {",
	},
	{
		name: "who-is-not-asking-hears-nothing", what: "who has left a page that counts for nothing is told so only if he asks for another in that moment",
		file: "ingest/convoy.go",
		old:  "func() { a.back = back }", new: "func() {}",
	},
	{
		name: "slow-holds-the-others", what: "a destination that was too slow for the others goes on to share their pages",
		file: "ingest/fan.go",
		old:  "\t\ta.slow = true\n", new: "",
	},
	{
		name: "later-runs-get-a-whole-budget", what: "a run that begins in the middle of a tick has as much time as one that begins with it",
		file: "ondemand/tick.go",
		old:  "\trun.Budget = min(run.Budget, r.deadline.Sub(r.Clock.Now()))\n", new: "",
	},

	// Chosen by a reader: leases, limits, logins.
	{
		name: "lease-of-a-fixed-id", what: "all processes ask for a lease under the same id, so that a restarted one need not wait",
		file: "checkpoint/blob/blob.go",
		old:  "held, err := lease.NewBlobClient(client, nil)", new: "held, err := lease.NewBlobClient(client, &lease.BlobClientOptions{LeaseID: to.Ptr(\"51756c79-7300-4000-8000-53656e74696e\")})",
	},
	{
		name: "rests-of-others-overwritten", what: "who writes down what Qualys has asked for drops what others have written since",
		file: "qualys/memory.go",
		old:  "\t\tkept = s.take(&m, now)\n\t\tc.limits.adopt(m.Rests, now)\n", new: "\t\tkept = s.take(&m, now)\n",
	},
	{
		name: "reload-not-waited-for", what: "other calls go on with a login that was refused until it has been read anew",
		file: "qualys/login.go",
		old:  "\t\tdefer c.distrust(used)()\n", new: "",
	},
	{
		name: "slot-lost-with-its-waiter", what: "a call that is given up in the moment in which its turn comes keeps the slot for ever",
		file: "qualys/limits.go",
		old:  " else {\n\t\t\t\te.leave() // the turn came in this very moment\n\t\t\t}\n", new: "\n",
	},

	// Chosen by a reader: what people are told.
	{
		name: "request-complete-without-isolated", what: "a request is closed as complete although some of its hosts have not come",
		file: "ondemand/carry.go",
		old:  "len(report.Isolated) > 0 && !r.Own():", new: "len(report.Isolated) > 0 && !r.Own() && report.Stalled > 0:",
	},
}
