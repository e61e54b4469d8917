//! The messaging patterns of Postrider.
