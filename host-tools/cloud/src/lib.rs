//! What a site's messages become: complete records, the newest of everything, a live page.
//!
//! ```text
//! broker --> subscriber::run --> Store (tracker: what is missing) --> page
//!    ^---------- resend ---------'
//! ```

pub mod page;
pub mod store;
pub mod subscriber;
pub mod tracker;
