//! Example services built with Postrider.
