//! How many connections each address has, where that is limited.
//!
//! The accept loop's own. Pure code. Counts nothing, and costs nothing, while there is no limit.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

/// Connections by where they come from.
#[derive(Debug)]
pub struct Addresses {
    /// The most of one address; 0 is as many as there are.
    most: usize,
    counts: HashMap<IpAddr, usize>,
}

/// A connection's place among those of its address; it has to be given back.
#[derive(Debug)]
pub struct Place(Option<IpAddr>);

impl Addresses {
    /// None yet, and `most` for each address.
    pub fn new(most: usize) -> Self {
        Self { most, counts: HashMap::new() }
    }

    /// A place for a connection from `address` (`None` for a Unix socket, which is not counted); `None` when
    /// there is no more.
    pub fn enter(&mut self, address: Option<IpAddr>) -> Option<Place> {
        let Some(address) = address.filter(|_| self.most > 0).map(neighbourhood) else {
            return Some(Place(None));
        };
        let count = self.counts.entry(address).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Place(Some(address)))
    }

    /// The connection has ended.
    pub fn leave(&mut self, place: Place) {
        let Some(address) = place.0 else { return };
        if let Some(count) = self.counts.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&address);
            }
        }
    }
}

/// What counts as one address: of IPv6 the 64 bits that a network is given, because the other 64 are its
/// owner's to choose.
fn neighbourhood(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn each_address_has_its_places_and_gets_them_back() {
        let mut addresses = Addresses::new(2);
        let places = [ip("10.0.0.1"), ip("::ffff:10.0.0.1")].map(|from| addresses.enter(from).unwrap());
        assert!(addresses.enter(ip("10.0.0.1")).is_none());
        let other = addresses.enter(ip("10.0.0.2")).unwrap();
        for place in places {
            addresses.leave(place);
        }
        assert!(addresses.enter(ip("10.0.0.1")).is_some());
        addresses.leave(other);
        assert_eq!(addresses.counts.len(), 1, "what is not there is not remembered");
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let mut addresses = Addresses::new(1);
        let _place = addresses.enter(ip("2001:db8:1:2::1")).unwrap();
        assert!(addresses.enter(ip("2001:db8:1:2:ffff::9")).is_none());
        assert!(addresses.enter(ip("2001:db8:1:3::1")).is_some());
    }

    #[test]
    fn without_a_limit_and_on_unix_sockets_nothing_is_counted() {
        let (mut unlimited, mut limited) = (Addresses::new(0), Addresses::new(1));
        assert!((0..9).all(|_| unlimited.enter(ip("10.0.0.1")).is_some()));
        assert!((0..9).all(|_| limited.enter(None).is_some()));
        assert!(unlimited.counts.is_empty() && limited.counts.is_empty());
    }
}
