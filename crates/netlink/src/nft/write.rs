//! Writing netlink attributes. nf_tables wants its numbers in network byte order.

use crate::wire::put_attribute;

/// A buffer of attributes under construction.
#[derive(Debug, Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub fn bytes(&mut self, kind: u16, value: &[u8]) {
        put_attribute(&mut self.0, kind, value);
    }

    pub fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes);
    }

    pub fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        const NLA_F_NESTED: u16 = 0x8000;
        let mut inner = Self::default();
        fill(&mut inner);
        self.bytes(kind | NLA_F_NESTED, &inner.0);
    }

    /// Data of a register: `NFTA_DATA_VALUE` inside `kind`.
    pub fn data(&mut self, kind: u16, value: &[u8]) {
        const NFTA_DATA_VALUE: u16 = 1;
        self.nested(kind, |data| data.bytes(NFTA_DATA_VALUE, value));
    }

    /// Attributes that are written already.
    pub fn raw(&mut self, attributes: &[u8]) {
        self.0.extend(attributes);
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}
