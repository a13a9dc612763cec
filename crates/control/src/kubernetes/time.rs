//! RFC 3339, as far as Kubernetes writes it.

use heddle_model::Created;

/// Seconds since the epoch of `2026-11-20T08:00:00Z`; fractions of a second are cut off.
pub fn parse(text: &str) -> Option<Created> {
    let (date, rest) = text.split_once(['T', 't'])?;
    let mut date = date.splitn(3, '-');
    let (year, month, day) = (number(date.next()?, 4)?, number(date.next()?, 2)?, number(date.next()?, 2)?);
    let zone = rest.find(['Z', 'z', '+', '-'])?;
    let (clock, zone) = rest.split_at(zone);
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    if fraction.is_empty() || !fraction.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    let mut clock = clock.splitn(3, ':').map(|part| number(part, 2));
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    let offset = match zone {
        "Z" | "z" => 0,
        _ => {
            let (hours, minutes) = zone[1..].split_once(':')?;
            let minutes = number(hours, 2)? * 60 + number(minutes, 2)?;
            if zone.starts_with('-') { -minutes } else { minutes }
        }
    };
    let valid =
        (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second <= 60;
    valid.then(|| Created(((days(year, month, day) * 24 + hour) * 60 + minute - offset) * 60 + second))
}

/// As Kubernetes writes it: `2026-11-20T08:00:00Z`.
pub fn text(at: Created) -> String {
    let (day, second) = (at.0.div_euclid(86_400), at.0.rem_euclid(86_400));
    // As in `days`: eras of 400 years that begin in March.
    let day = day.saturating_add(719_468);
    let (era, day) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let date = of_year - (153 * month + 2) / 5 + 1;
    let (year, month) =
        (year + era * 400 + i64::from(month > 9), if month > 9 { month - 9 } else { month + 3 });
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}Z")
}

fn number(text: &str, digits: usize) -> Option<i64> {
    (text.len() == digits && text.bytes().all(|c| c.is_ascii_digit())).then(|| text.parse().ok())?
}

/// Days from 1970-01-01 in the proleptic Gregorian calendar: the year begins in March, so that the leap
/// day is its last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        // From `date -u -d ... +%s`.
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:34:56Z", 951_827_696),
            ("2026-11-20T08:00:00Z", 1_795_161_600),
            ("2026-11-20T09:30:00.123456+01:30", 1_795_161_600),
            ("2026-11-20T07:00:00-01:00", 1_795_161_600),
            ("1969-12-31T23:59:59Z", -1),
        ] {
            assert_eq!(parse(text), Some(Created(seconds)), "{text}");
        }
        for seconds in [0, 951_827_696, 1_795_161_600, -1, 951_868_800, 1_709_164_800, 4_107_542_400] {
            assert_eq!(parse(&text(Created(seconds))), Some(Created(seconds)), "{}", text(Created(seconds)));
        }
        assert_eq!(text(Created(951_827_696)), "2000-02-29T12:34:56Z");
        for bad in [
            "",
            "2026-11-20",
            "2026-13-20T08:00:00Z",
            "2026-11-20T08:00Z",
            "2026-11-20T08:00:00",
            "x",
            "2026-11-20T08:00:00.Z",
            "2026-11-20T08:00:00+01",
            "26-11-20T08:00:00Z",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
