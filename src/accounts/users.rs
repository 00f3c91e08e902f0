//! Local accounts: creating, signing in by password, changing, locking, deactivating.

use std::sync::Arc;

use ruma::{OwnedUserId, UserId};

use super::{
    Accounts, Error, Issued, LocalUser, NewDevice, UserNumber, devices, numbers,
    rows::{ACCOUNTS, Account, Device},
};
use crate::storage::{Batch, Cbor, Order, Snapshot, Topic};

/// Longer user IDs are no user IDs.
///
/// Spec: appendices, "User Identifiers".
const MAX_USER_ID_BYTES: usize = 255;
const GENERATED_LOCALPART_CHARS: usize = 12;

/// An account to be made.
#[derive(Clone, Debug, Default)]
pub struct NewUser {
    /// Absent: a random one. Capitals become small letters.
    pub localpart: Option<String>,
    /// Absent: nobody can sign in with a password.
    pub password: Option<String>,
    pub displayname: Option<String>,
    pub is_admin: bool,
    /// For the server's own use: the name may be a reserved one.
    pub is_service: bool,
}

/// A local account as administrators see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountInfo {
    pub number: UserNumber,
    pub user: OwnedUserId,
    pub created_ms: u64,
    pub is_admin: bool,
    pub is_deactivated: bool,
    pub is_erased: bool,
    pub is_locked: bool,
    pub is_suspended: bool,
    pub has_password: bool,
}

/// A change of what an account may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccountChange {
    Admin(bool),
    Locked(bool),
    Suspended(bool),
}

/// Whether the traces of a deactivated user are taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Erase {
    Yes,
    No,
}

impl Accounts {
    pub fn is_local(&self, user: &UserId) -> bool {
        user.server_name() == self.inner.server_name
    }

    /// The user ID that `localpart` would have here.
    ///
    /// # Errors
    /// [`Error::InvalidUsername`]; [`Error::Reserved`].
    pub fn new_user_id(&self, localpart: &str) -> Result<OwnedUserId, Error> {
        let localpart = localpart.to_ascii_lowercase();
        if self.inner.registration.reserved_names.contains(&localpart) {
            return Err(Error::Reserved);
        }
        self.any_user_id(&localpart)
    }

    /// The user ID of a localpart in small letters, reserved or not.
    fn any_user_id(&self, localpart: &str) -> Result<OwnedUserId, Error> {
        if localpart.is_empty() {
            return Err(Error::InvalidUsername(
                "A user name has at least one character",
            ));
        }
        let is_allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'=' | b'-' | b'/' | b'+');
        if !localpart.bytes().all(is_allowed) {
            return Err(Error::InvalidUsername(
                "A user name consists of a-z, 0-9, '.', '_', '=', '-', '/' and '+'",
            ));
        }
        let user = format!("@{localpart}:{}", self.inner.server_name);
        if user.len() > MAX_USER_ID_BYTES {
            return Err(Error::InvalidUsername(
                "The user ID is longer than 255 bytes",
            ));
        }
        UserId::parse(&user).map_err(|_error| Error::InvalidUsername("The user name is not valid"))
    }

    /// That a user could register with this name now.
    ///
    /// # Errors
    /// As [`Accounts::new_user_id`]; [`Error::UserInUse`], also for deactivated users.
    pub async fn check_available(&self, localpart: &str) -> Result<OwnedUserId, Error> {
        let user = self.new_user_id(localpart)?;
        let (this, wanted) = (self.clone(), user.clone());
        let exists = self
            .inner
            .store
            .read(move |snapshot| this.account(snapshot, &wanted))
            .await?
            .is_some();
        match exists {
            true => Err(Error::UserInUse),
            false => Ok(user),
        }
    }

    /// Makes an account and, if asked, signs it in, in one batch.
    ///
    /// # Errors
    /// As [`Accounts::check_available`]; [`Error::WeakPassword`]; [`Error::InvalidDevice`].
    pub async fn create_user(
        &self,
        new: NewUser,
        device: Option<NewDevice>,
        mut batch: Batch,
    ) -> Result<(LocalUser, Option<Issued>), Error> {
        let localpart = new
            .localpart
            .clone()
            .unwrap_or_else(|| self.random_localpart());
        let id = match new.is_service {
            true => self.any_user_id(&localpart)?,
            false => self.check_available(&localpart).await?,
        };
        let password = match &new.password {
            Some(password) => Some(self.hash_new(password, id.localpart()).await?),
            None => None,
        };
        let giving_out = Arc::clone(&self.inner.giving_out).lock_owned().await;
        let (this, wanted) = (self.clone(), id.clone());
        let number = self
            .inner
            .store
            .read(move |snapshot| this.number_for_new(snapshot, &wanted))
            .await?;
        if number.is_new {
            numbers::put(&mut batch, &id, number.number);
        }
        let number = number.number;
        let created_ms = self.inner.clock.now_ms();
        let row = Account {
            password,
            created_ms,
            admin: new.is_admin,
            ..Account::default()
        };
        batch.put(&ACCOUNTS, &(number,), &Cbor(row));
        if let Some(name) = &new.displayname {
            self.put_first_profile(&mut batch, number, name)?;
        }
        let issued = match device {
            Some(device) => {
                let device_id = self.device_id(device.id.clone())?;
                Some(self.put_device(&mut batch, (number, &device_id), None, device)?)
            }
            None => None,
        };
        self.forget_in_directory(&mut batch, number);
        batch.hold(giving_out);
        self.inner.store.submit(batch).await?;
        self.inner.counters.registrations.inc();
        Ok((LocalUser { id, number }, issued))
    }

    /// An account for the server's own use, made if it is not there. Nobody can sign in to it.
    ///
    /// # Errors
    /// [`Error::InvalidUsername`].
    pub async fn service_user(&self, localpart: &str) -> Result<LocalUser, Error> {
        let id = self.any_user_id(localpart)?;
        let (this, wanted) = (self.clone(), id.clone());
        let read = move |snapshot: &Snapshot| this.account(snapshot, &wanted);
        if let Some((number, _)) = self.inner.store.read(read).await? {
            return Ok(LocalUser { id, number });
        }
        let new = NewUser {
            localpart: Some(localpart.to_owned()),
            is_service: true,
            ..NewUser::default()
        };
        let (user, _no_session) = self.create_user(new, None, Batch::new()).await?;
        Ok(user)
    }

    fn number_for_new(&self, snapshot: &Snapshot, user: &UserId) -> Result<Numbered, Error> {
        let Some(number) = self.user_number(snapshot, user)? else {
            return Ok(Numbered {
                number: numbers::next_number(snapshot)?,
                is_new: true,
            });
        };
        match snapshot.get(&ACCOUNTS, &(number,))? {
            Some(_) => Err(Error::UserInUse),
            None => Ok(Numbered {
                number,
                is_new: false,
            }),
        }
    }

    /// The user that a sign-in names: by a whole user ID of this server, or by its localpart; capitals do not matter.
    pub fn find_login(&self, name: &str) -> Option<OwnedUserId> {
        let user = match name.starts_with('@') {
            true => UserId::parse(name).ok()?,
            false => UserId::parse(format!("@{name}:{}", self.inner.server_name)).ok()?,
        };
        match self.is_local(&user) {
            true => UserId::parse(format!(
                "@{}:{}",
                user.localpart().to_lowercase(),
                user.server_name()
            ))
            .ok(),
            false => None,
        }
    }

    /// The local user with this name and password.
    ///
    /// # Errors
    /// [`Error::BadCredentials`], no matter which of the two is wrong; [`Error::Deactivated`]; [`Error::Locked`].
    pub async fn log_in(&self, name: &str, password: &str) -> Result<LocalUser, Error> {
        let found = match self.find_login(name) {
            Some(id) => {
                let this = self.clone();
                self.inner
                    .store
                    .read(move |snapshot| {
                        Ok::<_, Error>(this.account(snapshot, &id)?.map(|row| (id, row)))
                    })
                    .await?
            }
            None => None,
        };
        let stored = found
            .as_ref()
            .and_then(|(_, (_, row))| row.password.clone());
        let is_correct = self
            .inner
            .passwords
            .is_correct(password, stored.clone())
            .await?;
        let Some((id, (number, row))) = found else {
            return Err(Error::BadCredentials);
        };
        if row.deactivated {
            return Err(Error::Deactivated);
        }
        if !is_correct {
            return Err(Error::BadCredentials);
        }
        if row.locked {
            return Err(Error::Locked);
        }
        if stored.is_some_and(|stored| self.inner.passwords.is_outdated(&stored)) {
            let password = self
                .inner
                .passwords
                .hash(password, self.inner.clock.random_bytes())
                .await?;
            self.change_account(number, move |row| row.password = Some(password))
                .await?;
        }
        Ok(LocalUser { id, number })
    }

    /// Whether this is the password of `user`.
    pub async fn is_password(&self, user: UserNumber, password: &str) -> Result<bool, Error> {
        let row = self
            .inner
            .store
            .read(move |snapshot| Ok::<_, Error>(snapshot.get(&ACCOUNTS, &(user,))?))
            .await?;
        self.inner
            .passwords
            .is_correct(password, row.and_then(|Cbor(row)| row.password))
            .await
    }

    /// That `user` can still sign in, by whatever means.
    ///
    /// # Errors
    /// [`Error::Deactivated`]; [`Error::Locked`]; [`Error::BadCredentials`] if there is no such account.
    pub async fn check_may_sign_in(&self, user: UserNumber) -> Result<LocalUser, Error> {
        let this = self.clone();
        let read = move |snapshot: &Snapshot| {
            let row = snapshot.get(&ACCOUNTS, &(user,))?;
            Ok::<_, Error>((row, this.user_id(snapshot, user)?))
        };
        match self.inner.store.read(read).await? {
            (None, _) => Err(Error::BadCredentials),
            (
                Some(Cbor(Account {
                    deactivated: true, ..
                })),
                _,
            ) => Err(Error::Deactivated),
            (Some(Cbor(Account { locked: true, .. })), _) => Err(Error::Locked),
            (Some(_), id) => Ok(LocalUser { id, number: user }),
        }
    }

    /// Gives `user` a new password.
    ///
    /// # Errors
    /// [`Error::WeakPassword`]; [`Error::UnknownUser`].
    pub async fn set_password(&self, user: &LocalUser, password: &str) -> Result<(), Error> {
        let password = self.hash_new(password, user.id.localpart()).await?;
        self.change_account(user.number, move |row| row.password = Some(password))
            .await
    }

    /// That `password` would be accepted as a new one.
    ///
    /// # Errors
    /// [`Error::WeakPassword`].
    pub async fn judge_password(&self, password: &str, localpart: &str) -> Result<(), Error> {
        self.inner.passwords.judge(password, localpart).await
    }

    async fn hash_new(&self, password: &str, localpart: &str) -> Result<String, Error> {
        self.judge_password(password, localpart).await?;
        self.inner
            .passwords
            .hash(password, self.inner.clock.random_bytes())
            .await
    }

    /// Makes an account an administrator, locks or suspends it, or the reverse.
    ///
    /// # Errors
    /// [`Error::UnknownUser`].
    pub async fn change(&self, user: UserNumber, change: AccountChange) -> Result<(), Error> {
        self.change_account(user, move |row| match change {
            AccountChange::Admin(value) => row.admin = value,
            AccountChange::Locked(value) => row.locked = value,
            AccountChange::Suspended(value) => row.suspended = value,
        })
        .await
    }

    async fn change_account(
        &self,
        user: UserNumber,
        change: impl FnOnce(&mut Account) + Send + 'static,
    ) -> Result<(), Error> {
        let turn = self.inner.turns.lock(user).await;
        let (mut row, devices) = self
            .inner
            .store
            .read(move |snapshot| account_with_devices(snapshot, user))
            .await?;
        change(&mut row);
        let mut batch = Batch::new();
        batch.put(&ACCOUNTS, &(user,), &Cbor(row));
        batch.wake(Topic::User(user.0));
        let tokens = devices
            .into_iter()
            .flat_map(|(_, device)| device.tokens)
            .collect();
        self.forget_sessions(&mut batch, tokens);
        batch.hold(turn);
        self.inner.store.submit(batch).await?;
        Ok(())
    }

    /// Ends an account for ever: its name is never given out again, its devices, password and profile are gone.
    ///
    /// # Errors
    /// [`Error::UnknownUser`].
    ///
    /// Spec: c2s, "Account deactivation".
    pub async fn deactivate(&self, user: UserNumber, erase: Erase) -> Result<(), Error> {
        let turn = self.inner.turns.lock(user).await;
        let (mut row, devices) = self
            .inner
            .store
            .read(move |snapshot| account_with_devices(snapshot, user))
            .await?;
        row.deactivated = true;
        row.erased |= erase == Erase::Yes;
        row.admin = false;
        row.password = None;
        let mut batch = Batch::new();
        batch.put(&ACCOUNTS, &(user,), &Cbor(row));
        self.put_end_of_devices(&mut batch, user, &devices);
        self.put_end_of_profile(&mut batch, user);
        self.put_end_of_account_data(&mut batch, user);
        batch.hold(turn);
        self.inner.store.submit(batch).await?;
        Ok(())
    }

    /// The account of `user` as administrators see it.
    pub fn account_info(
        &self,
        snapshot: &Snapshot,
        user: &UserId,
    ) -> Result<Option<AccountInfo>, Error> {
        Ok(self
            .account(snapshot, user)?
            .map(|(number, row)| info(number, user.to_owned(), &row)))
    }

    /// Accounts after `after`, at most `limit`, in the order in which they were made.
    pub fn accounts(
        &self,
        snapshot: &Snapshot,
        after: UserNumber,
        limit: usize,
    ) -> Result<Vec<AccountInfo>, Error> {
        let mut accounts = Vec::new();
        for row in snapshot
            .scan(
                ACCOUNTS.range(
                    &(UserNumber(after.0.saturating_add(1)),),
                    &(UserNumber(u32::MAX),),
                ),
                Order::Forward,
            )
            .take(limit)
        {
            let ((number,), Cbor(row)) = row?;
            accounts.push(info(number, self.user_id(snapshot, number)?, &row));
        }
        Ok(accounts)
    }

    /// Whether nobody has an account yet.
    pub fn is_empty(&self, snapshot: &Snapshot) -> Result<bool, Error> {
        Ok(self.accounts(snapshot, UserNumber(0), 1)?.is_empty())
    }

    pub(super) fn account(
        &self,
        snapshot: &Snapshot,
        user: &UserId,
    ) -> Result<Option<(UserNumber, Account)>, Error> {
        if !self.is_local(user) {
            return Ok(None);
        }
        let Some(number) = self.user_number(snapshot, user)? else {
            return Ok(None);
        };
        Ok(snapshot
            .get(&ACCOUNTS, &(number,))?
            .map(|Cbor(row)| (number, row)))
    }

    fn random_localpart(&self) -> String {
        let random: [u8; GENERATED_LOCALPART_CHARS] = self.inner.clock.random_bytes();
        random
            .iter()
            .map(|byte| char::from(b'a' + byte % 26))
            .collect()
    }
}

struct Numbered {
    number: UserNumber,
    is_new: bool,
}

fn account_with_devices(
    snapshot: &Snapshot,
    user: UserNumber,
) -> Result<(Account, Vec<(ruma::OwnedDeviceId, Device)>), Error> {
    let Cbor(row) = snapshot
        .get(&ACCOUNTS, &(user,))?
        .ok_or(Error::UnknownUser)?;
    Ok((row, devices::devices_to_end(snapshot, user, |_| true)?))
}

fn info(number: UserNumber, user: OwnedUserId, row: &Account) -> AccountInfo {
    AccountInfo {
        number,
        user,
        created_ms: row.created_ms,
        is_admin: row.admin,
        is_deactivated: row.deactivated,
        is_erased: row.erased,
        is_locked: row.locked,
        is_suspended: row.suspended,
        has_password: row.password.is_some(),
    }
}
