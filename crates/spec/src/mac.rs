//! Ethernet addresses as people write them.

use heddle_netlink::MacAddr;

/// Reads the address of one interface: six pairs of hexadecimal digits with colons or hyphens between them.
///
/// # Errors
/// What is wrong with it: also an address that no interface can have (all zeros, or of a group).
pub fn parse(text: &str) -> Result<MacAddr, String> {
    let shown: String = text.chars().take(64).collect();
    let none = || format!("{shown:?} is not an Ethernet address");
    let separator = if text.contains('-') { '-' } else { ':' };
    let mut mac = MacAddr::default();
    let mut parts = text.split(separator);
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()));
        *byte = part.and_then(|part| u8::from_str_radix(part, 16).ok()).ok_or_else(none)?;
    }
    if parts.next().is_some() {
        return Err(none());
    }
    if mac == MacAddr::default() {
        return Err(format!("{shown:?} is nobody's address"));
    }
    if mac.first().is_some_and(|first| first & 1 == 1) {
        return Err(format!("{shown:?} is the address of a group"));
    }
    Ok(mac)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_interface_has_one_address_of_its_own() {
        assert_eq!(parse("02:00:5e:00:53:aF"), Ok([2, 0, 0x5e, 0, 0x53, 0xaf]));
        assert_eq!(parse("02-00-5e-00-53-01"), Ok([2, 0, 0x5e, 0, 0x53, 1]));
        let wrong = [
            "",
            "02",
            "02:00:5e:00:53",
            "02:00:5e:00:53:01:02",
            "02:00:5e:00:53:0g",
            "02:00:5e:00:53:+1",
            "2:0:5e:0:53:1",
            "02:00-5e:00:53:01",
            "00:00:00:00:00:00",
            "ff:ff:ff:ff:ff:ff",
            "01:00:5e:00:00:01",
            "0200.5e00.5301",
            " 02:00:5e:00:53:01",
        ];
        for text in wrong {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_again(mac: [u8; 6]) {
            let usable = mac[0] & 1 == 0 && mac != [0; 6];
            prop_assert_eq!(parse(&heddle_netlink::DisplayMac(mac).to_string()).ok(), usable.then_some(mac));
        }

        #[test]
        fn whatever_comes_is_read_or_refused(text in ".{0,30}") {
            drop(parse(&text));
        }
    }
}
