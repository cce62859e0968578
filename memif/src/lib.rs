//! memif client and server.
