//! Measurements of Postrider.
