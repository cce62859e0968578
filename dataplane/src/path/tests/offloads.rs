//! offloads
