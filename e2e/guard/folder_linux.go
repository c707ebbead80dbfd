package main

import "golang.org/x/sys/unix"

// leastRoom is three times what the tests' temporary files take, with the programs that the
// compiler makes of them, in bytes.
const leastRoom = 2 << 30

// inMemory is a place for files in memory; empty: there is none that has room, and from
// which programs start. Tests sync thousands of small files: on a disk they take twice the
// time.
func inMemory() string {
	const place = "/dev/shm"
	var of unix.Statfs_t
	if err := unix.Statfs(place, &of); err != nil || of.Type != unix.TMPFS_MAGIC || of.Flags&unix.MS_NOEXEC != 0 {
		return ""
	}
	if int64(of.Bavail)*of.Bsize < leastRoom {
		return ""
	}
	return place
}
