//! Scenarios that run the real programs in the Lab.
