//! `lab`: the Lab for a person.

fn main() {}
