// Package lago proves the mapping on tables that somebody else designed: those of Lago, a billing system whose API keys
// stand in plaintext, with times without a zone, and with permissions that count for some customers only. Its tests make
// the writes that such an application makes, in SQL of its own, and see each of them take effect.
package lago
