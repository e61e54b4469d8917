//! The in-memory broker against a model of it, on the virtual clock.
//!
//! proptest makes up programs of publishes, consumers, settlements, lost connections and passing
//! time; a failing one is shrunk and printed with its seed, which is also kept beside this file.

mod reference;
mod system;

use proptest::prelude::*;
use proptest_state_machine::prop_state_machine;

use crate::system::BrokerTest;

prop_state_machine! {
    #![proptest_config(ProptestConfig {
        cases: 768,
        max_shrink_iters: 20_000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_broker_does_what_the_model_says(sequential 1..80 => BrokerTest);
}
