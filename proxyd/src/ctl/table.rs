//! Columns for people.

use std::fmt::Write as _;

/// A blank line, the words of `head`, and the rows, in columns as wide as needed. Nothing without rows.
/// A row may be shorter than the head.
pub fn print(head: &str, rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut lines: Vec<Vec<String>> = vec![head.split(' ').map(str::to_owned).collect()];
    lines.extend(rows);
    if lines.len() == 1 {
        return String::new();
    }
    let mut widths = vec![0; lines[0].len()];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::from("\n");
    for line in &lines {
        let mut printed = String::new();
        for (width, cell) in widths.iter().zip(line) {
            // Writing to a String does not fail.
            let _ = write!(printed, "{cell:<width$}  ");
        }
        text.push_str(printed.trim_end());
        text.push('\n');
    }
    text
}
