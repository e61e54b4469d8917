//! The management API of a RabbitMQ broker.

use postrider_core::Result;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use super::failed;

/// The management API of a broker, used by an administrator.
///
/// Its list of connections lags behind by seconds. What it knows of one user's connections is exact,
/// so a test whose connections are to be closed has a user of its own.
#[derive(Debug, Clone)]
pub struct Management {
    /// Without its credentials.
    url: String,
    authorization: String,
}

impl Management {
    /// The API at a URL such as `http://user:password@host:15672`; without credentials they are
    /// those of `guest`.
    #[must_use]
    pub fn new(url: &str) -> Self {
        let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
        let (credentials, host) = rest.rsplit_once('@').unwrap_or(("guest:guest", rest));
        Self {
            url: format!("{scheme}://{}", host.trim_end_matches('/')),
            authorization: format!("Basic {}", base64(credentials.as_bytes())),
        }
    }

    /// Whether anybody answers.
    pub(super) async fn answers(&self) -> bool {
        self.get("/api/whoami").await.is_ok()
    }

    /// Makes a user whose password is its name, with every permission on the virtual host `/`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Internal`](postrider_core::ErrorKind::Internal) when the API does not answer as
    /// it should; so do all its calls.
    pub async fn make_user(&self, user: &str) -> Result<()> {
        let path = format!("/api/users/{user}");
        self.put(&path, json!({ "password": user, "tags": "" })).await?;
        self.permit(user, "/", true).await
    }

    /// Removes a user; its connections are closed.
    ///
    /// # Errors
    ///
    /// As [`make_user`](Self::make_user).
    pub async fn remove_user(&self, user: &str) -> Result<()> {
        self.delete(&format!("/api/users/{user}")).await.map(drop)
    }

    /// Allows a user everything or nothing on a virtual host.
    ///
    /// # Errors
    ///
    /// As [`make_user`](Self::make_user).
    pub async fn permit(&self, user: &str, virtual_host: &str, allowed: bool) -> Result<()> {
        let names = if allowed { ".*" } else { "" };
        let permissions = json!({ "configure": names, "write": names, "read": names });
        let path = format!("/api/permissions/{}/{user}", percent_encoded(virtual_host));
        self.put(&path, permissions).await
    }

    /// Makes a virtual host. Nobody may do anything in it yet.
    ///
    /// # Errors
    ///
    /// As [`make_user`](Self::make_user).
    pub async fn make_virtual_host(&self, name: &str) -> Result<()> {
        self.put(&format!("/api/vhosts/{}", percent_encoded(name)), json!({})).await
    }

    /// Removes a virtual host with everything in it.
    ///
    /// # Errors
    ///
    /// As [`make_user`](Self::make_user).
    pub async fn remove_virtual_host(&self, name: &str) -> Result<()> {
        self.delete(&format!("/api/vhosts/{}", percent_encoded(name))).await.map(drop)
    }

    /// Declares a durable queue on the virtual host `/`, with arguments that Postrider has no
    /// words for.
    ///
    /// # Errors
    ///
    /// As [`make_user`](Self::make_user).
    pub async fn declare_queue(&self, name: &str, arguments: Value) -> Result<()> {
        let queue = json!({ "durable": true, "arguments": arguments });
        self.put(&format!("/api/queues/%2F/{}", percent_encoded(name)), queue).await
    }

    /// The names of the connections that a user has now.
    ///
    /// # Errors
    ///
    /// As [`make_user`](Self::make_user).
    pub async fn connections(&self, user: &str) -> Result<Vec<String>> {
        let listed = self.get(&format!("/api/connections/username/{user}")).await?;
        Ok(names(&listed))
    }

    /// Has the broker close all connections that a user has now.
    ///
    /// # Errors
    ///
    /// As [`make_user`](Self::make_user).
    pub async fn close_all(&self, user: &str) -> Result<()> {
        self.delete(&format!("/api/connections/username/{user}")).await.map(drop)
    }

    /// The connections of a user, each with the name that its client gave it before; seconds late.
    pub(super) async fn named_connections(&self, user: &str) -> Result<Vec<(String, String)>> {
        let listed = self.get("/api/connections?columns=name,user,user_provided_name").await?;
        let connections = listed.as_array().into_iter().flatten();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(connections
            .filter(|connection| connection["user"] == user)
            .map(|connection| (text(&connection["user_provided_name"]), text(&connection["name"])))
            .collect())
    }

    /// Closes a connection; `false` when it is not there.
    pub(super) async fn close(&self, connection: &str) -> Result<bool> {
        self.delete(&format!("/api/connections/{}", percent_encoded(connection))).await
    }

    /// The names of all queues.
    pub(super) async fn queues(&self) -> Result<Vec<String>> {
        let path = "/api/queues?disable_stats=true&enable_queue_totals=true&columns=name";
        Ok(names(&self.get(path).await?))
    }

    async fn get(&self, path: &str) -> Result<Value> {
        self.call(path, |url, authorization| {
            ureq::get(url)
                .header("authorization", authorization)
                .call()
                .and_then(|mut answer| answer.body_mut().read_json())
        })
        .await
    }

    async fn put(&self, path: &str, body: Value) -> Result<()> {
        self.call(path, move |url, authorization| {
            ureq::put(url).header("authorization", authorization).send_json(&body).map(drop)
        })
        .await
    }

    /// Deletes what is at `path`; `false` when nothing is.
    async fn delete(&self, path: &str) -> Result<bool> {
        self.call(path, |url, authorization| {
            match ureq::delete(url).header("authorization", authorization).call() {
                Ok(_) => Ok(true),
                Err(ureq::Error::StatusCode(404)) => Ok(false),
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// Makes a call on a thread where it may block.
    async fn call<T: Send + 'static>(
        &self,
        path: &str,
        call: impl FnOnce(&str, &str) -> Result<T, ureq::Error> + Send + 'static,
    ) -> Result<T> {
        let (url, authorization) = (format!("{}{path}", self.url), self.authorization.clone());
        let answer = spawn_blocking(move || call(&url, &authorization)).await;
        let answer = answer.map_err(|error| failed(path, error))?;
        answer.map_err(|error| failed(path, error))
    }
}

/// The field `name` of each entry of a list.
fn names(listed: &Value) -> Vec<String> {
    let entries = listed.as_array().into_iter().flatten();
    entries.filter_map(|entry| entry["name"].as_str().map(ToOwned::to_owned)).collect()
}

fn percent_encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0_u32, |group, byte| group << 8 | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = DIGITS[(group >> (18 - 6 * place)) as usize & 63];
            text.push(if place <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_and_names_are_encoded() {
        let management = Management::new("http://guest:guest@127.0.0.1:15672/");
        assert_eq!(management.url, "http://127.0.0.1:15672");
        assert_eq!(management.authorization, "Basic Z3Vlc3Q6Z3Vlc3Q=");
        assert_eq!(percent_encoded("1:2 -> é"), "1%3A2%20-%3E%20%C3%A9");
    }
}
