//! Signatures as Standard Webhooks 1.0 has them: `webhook-id`, `webhook-timestamp` and
//! `webhook-signature`, an HMAC-SHA256 over `id.timestamp.body`, once for each key.
//!
//! Pure code.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::{digest, hmac};

use crate::config::SigningKey;
use crate::event::StoredEvent;

/// Signs requests with every key there is, so that a receiver may know the old or the new one.
pub(super) struct Signer {
    keys: Vec<hmac::Key>,
}

impl Signer {
    /// A signer with these keys.
    pub(super) fn new(keys: &[SigningKey]) -> Self {
        Self { keys: keys.iter().map(|key| hmac::Key::new(hmac::HMAC_SHA256, key.bytes())).collect() }
    }

    /// The value of `webhook-signature`; `None` without keys.
    pub(super) fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> Option<String> {
        let head = format!("{id}.{timestamp}.");
        let signatures = self.keys.iter().map(|key| {
            let mut context = hmac::Context::with_key(key);
            context.update(head.as_bytes());
            context.update(body);
            format!("v1,{}", STANDARD.encode(context.sign()))
        });
        let signatures: Vec<String> = signatures.collect();
        (!signatures.is_empty()).then(|| signatures.join(" "))
    }
}

/// The `webhook-id` of these events at this sink: the same at every attempt, another for any other
/// event, sink or set of events. The time of acceptance is part of it, so that a new data directory,
/// whose offsets begin anew, brings new ids.
pub(super) fn delivery_id(sink: &str, events: &[StoredEvent<'_>]) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&(sink.len() as u64).to_le_bytes());
    context.update(sink.as_bytes());
    for event in events {
        context.update(&event.offset.to_le_bytes());
        context.update(&event.accepted_at.0.to_le_bytes());
    }
    format!("msg_{}", URL_SAFE_NO_PAD.encode(&context.finish().as_ref()[..18]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Micros;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    #[test]
    fn the_known_answer_of_standard_webhooks() {
        let signer = Signer::new(&[SigningKey::parse(SECRET).unwrap()]);
        let signature =
            signer.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signature.as_deref(), Some("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="));
    }

    #[test]
    fn two_keys_give_two_signatures_and_none_gives_none() {
        let other = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        let keys = [SECRET, other].map(|key| SigningKey::parse(key).unwrap());
        let both = Signer::new(&keys).sign("a", 1, b"x").unwrap();
        let each: Vec<String> = keys
            .iter()
            .map(|key| Signer::new(std::slice::from_ref(key)).sign("a", 1, b"x").unwrap())
            .collect();
        assert_eq!(both, each.join(" "));
        assert_eq!(Signer::new(&[]).sign("a", 1, b"x"), None);
    }

    #[test]
    fn a_delivery_id_is_stable_and_its_own() {
        let event = |offset, at| StoredEvent { offset, accepted_at: Micros(at), json: b"{}" };
        let id = delivery_id("orders", &[event(1, 5)]);
        assert_eq!(id, delivery_id("orders", &[event(1, 5)]));
        let others = [
            delivery_id("order", &[event(1, 5)]),
            delivery_id("orders", &[event(2, 5)]),
            delivery_id("orders", &[event(1, 6)]),
            delivery_id("orders", &[event(1, 5), event(2, 5)]),
            delivery_id("orders", &[event(1, 5), event(3, 5)]),
        ];
        for (at, other) in others.iter().enumerate() {
            assert_ne!(*other, id);
            assert!(!others[..at].contains(other));
            assert!(other.len() == 28 && other.starts_with("msg_"), "{other}");
        }
    }
}
