//! Behaviour suites for transports.
