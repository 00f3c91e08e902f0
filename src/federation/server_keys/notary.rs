//! What this server tells of the keys of others.
//!
//! Spec: s2s, "Querying Keys Through Another Server".

use ruma::{CanonicalJsonObject, OwnedServerName};

use super::{Reason, ServerKeys};
use crate::events::canonical;

impl ServerKeys {
    /// The keys of a server with our signature, if they are known or can be had; asked for again if they do not last until
    /// `minimum_valid_until_ms`, or half of their time is over. The notaries that we trust are not asked: who wants
    /// their word goes to them.
    pub async fn notarized(
        &self,
        server: OwnedServerName,
        minimum_valid_until_ms: u64,
    ) -> Option<CanonicalJsonObject> {
        if server == self.inner.signer.server_name() {
            return Some(self.published());
        }
        if !self.is_fresh(&server, minimum_valid_until_ms).await {
            let _turn = self.inner.turns.lock(server.clone()).await;
            if !self.is_fresh(&server, minimum_valid_until_ms).await
                && self.may_ask(&server, Reason::Notary)
                && let Err(error) = self.fetch(&server, Reason::Notary).await
            {
                tracing::debug!(%server, %error, "the server does not tell its keys");
            }
        }
        let known = self.known(&server).await?;
        let mut document = canonical::parse(known.document.as_bytes()).ok()?;
        self.inner.signer.sign_json(&mut document).ok()?;
        Some(document)
    }

    async fn is_fresh(&self, server: &OwnedServerName, minimum_valid_until_ms: u64) -> bool {
        let Some(known) = self.known(server).await else {
            return false;
        };
        let half = known.valid_until_ms.saturating_sub(known.fetched_ms) / 2;
        known.valid_until_ms >= minimum_valid_until_ms
            && self.inner.clock.now_ms() <= known.fetched_ms.saturating_add(half)
    }
}
