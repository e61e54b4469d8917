//! The in-memory broker of Postrider.
