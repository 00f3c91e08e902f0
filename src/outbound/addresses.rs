//! Which addresses may be connected to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::units::Network;

/// Ranges that no stranger's wish shall lead to: networks of this machine and its owner, and what is no single machine.
const DENIED: &[&str] = &[
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    // Link-local; the metadata services of hosting providers are there.
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/3",
    "::/127",
    "100::/64",
    "2001:db8::/32",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
];

/// The prefix under which a network without IPv4 reaches IPv4 addresses (NAT64).
const NAT64_PREFIX: [u16; 6] = [0x64, 0xff9b, 0, 0, 0, 0];
/// The prefix of addresses that carry an IPv4 address in their second to sixth byte (6to4).
const SIX_TO_FOUR_PREFIX: u16 = 0x2002;

/// The ranges that are denied unless the configuration says otherwise.
pub(super) fn default_denied_ranges() -> Vec<Network> {
    DENIED
        .iter()
        .map(|range| range.parse().expect("the ranges above are ranges"))
        .collect()
}

/// Which addresses may be connected to.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    denied: Vec<Network>,
    allowed: Vec<Network>,
}

impl Rules {
    pub(super) fn new(denied: Vec<Network>, allowed: Vec<Network>) -> Self {
        Self { denied, allowed }
    }

    /// Whether `address` may be connected to. Where it is but another way to write an IPv4 address, that one counts too.
    pub(super) fn allow(&self, address: IpAddr) -> bool {
        let canonical = address.to_canonical();
        self.allow_one(canonical)
            && embedded(canonical).is_none_or(|inner| self.allow_one(IpAddr::V4(inner)))
    }

    fn allow_one(&self, address: IpAddr) -> bool {
        let is_in = |ranges: &[Network]| ranges.iter().any(|range| range.contains(address));
        is_in(&self.allowed) || !is_in(&self.denied)
    }
}

/// The IPv4 address that a gateway would lead `address` to.
fn embedded(address: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(address) = address else {
        return None;
    };
    match address.segments() {
        [a, b, c, d, e, f, high, low] if [a, b, c, d, e, f] == NAT64_PREFIX => {
            Some(from_halves(high, low))
        }
        [SIX_TO_FOUR_PREFIX, high, low, ..] => Some(from_halves(high, low)),
        _ => None,
    }
}

fn from_halves(high: u16, low: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low))
}

/// The address that a host is, if it is no name. IPv6 addresses stand in brackets or not.
pub(super) fn literal(host: &str) -> Option<IpAddr> {
    match host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        Some(inner) => inner.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => host.parse().ok(),
    }
}

#[cfg(test)]
mod tests;
