// Package e2e starts real parts: the Azure Functions host, Azurite, and the
// handler as it is deployed. Qualys, Log Analytics, Key Vault and the managed
// identity are the simulator's, which refuses what the real ones refuse. The
// tests look into /proc and send signals, so they run on Linux.
package e2e
