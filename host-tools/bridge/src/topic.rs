//! Names of what is published, and what is in it beyond `docs/northbound.md`.
//!
//! | topic below `heliograph/SITE/MASTER/` | retained | content |
//! |---|---|---|
//! | `telemetry/KIND` | no | the record, and `boot` |
//! | `status` | yes | the status, and `boot`, `forwarded` (one past the newest number that all of the broker's subscribers could have seen) |
//! | `map` | yes | the map |
//! | `bridge` | yes | [`Presence`]; the last will says `{"online":false}` |
//! | `lost` | no | [`Range`]: nobody can have these any more |
//! | `resend` | no | [`Range`], by a subscriber: say these again |

use serde::{Deserialize, Serialize};

/// Where one master's messages are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topics {
    base: String,
}

impl Topics {
    /// `None` when a name is empty or has a character that topics give a meaning.
    pub fn new(site: &str, master: &str) -> Option<Self> {
        let plain = |name: &str| !name.is_empty() && !name.contains(['/', '+', '#', '\0']);
        (plain(site) && plain(master)).then(|| Self {
            base: format!("heliograph/{site}/{master}"),
        })
    }

    /// Telemetry of one kind.
    pub fn telemetry(&self, kind: &str) -> String {
        format!("{}/telemetry/{kind}", self.base)
    }

    /// Any other, by its last name.
    pub fn of(&self, name: &str) -> String {
        format!("{}/{name}", self.base)
    }

    /// Site, master and the rest of a topic of ours.
    pub fn split(topic: &str) -> Option<(&str, &str, &str)> {
        let mut parts = topic.strip_prefix("heliograph/")?.splitn(3, '/');
        Some((parts.next()?, parts.next()?, parts.next()?))
    }
}

/// Records `from..=to` of one run of a master.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// Start of the run, Unix time in ms.
    pub boot: u64,
    /// First number.
    pub from: u64,
    /// Last number.
    pub to: u64,
}

/// What the bridge says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    /// Whether the bridge is connected to the broker.
    pub online: bool,
    /// Whether the master answers.
    #[serde(default)]
    pub master: bool,
    /// Why it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Records kept, said or not.
    #[serde(default)]
    pub kept: u64,
    /// Records lost for good since the bridge started.
    #[serde(default)]
    pub lost: u64,
    /// Times that the broker was reached.
    #[serde(default)]
    pub connections: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_falls_into_site_master_and_rest() {
        let topics = Topics::new("plant", "rack-1").expect("plain names");
        assert_eq!(
            topics.telemetry("pack"),
            "heliograph/plant/rack-1/telemetry/pack"
        );
        assert_eq!(
            Topics::split(&topics.telemetry("pack")),
            Some(("plant", "rack-1", "telemetry/pack"))
        );
        assert_eq!(Topics::split("heliograph/plant/rack-1"), None);
        for bad in ["", "a/b", "+", "#"] {
            assert_eq!(Topics::new("plant", bad), None);
        }
    }
}
