//! RabbitMQ's management API, as far as tests need it: to close a client's connections, and
//! for virtual hosts of their own.

use postrider_core::{Error, ErrorKind, Result};

/// The management API of a broker. Its calls block.
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

    /// Has the broker close the connections whose client calls them by a name that begins with
    /// `name`, and says how many it closed. The broker shows a connection within about a second,
    /// so there may be more.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Internal`] when the API does not answer as it should.
    pub fn close_connections(&self, name: &str) -> Result<usize> {
        let mut closed = 0;
        for connection in self.connections(name)? {
            closed += usize::from(self.close(&connection)?);
        }
        Ok(closed)
    }

    /// Makes a virtual host in which the user `guest` may do everything.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Internal`] when the API does not answer as it should.
    pub fn add_virtual_host(&self, name: &str) -> Result<()> {
        let name = percent_encoded(name);
        let everything =
            serde_json::json!({ "configure": ".*", "write": ".*", "read": ".*" }).to_string();
        for (path, body) in [
            (format!("vhosts/{name}"), "{}".to_owned()),
            (format!("permissions/{name}/guest"), everything),
        ] {
            ureq::put(format!("{}/api/{path}", self.url))
                .header("authorization", &self.authorization)
                .header("content-type", "application/json")
                .send(body)
                .map_err(|error| failed("adding a virtual host", &error))?;
        }
        Ok(())
    }

    /// Removes a virtual host with everything in it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Internal`] when the API does not answer as it should.
    pub fn remove_virtual_host(&self, name: &str) -> Result<()> {
        let url = format!("{}/api/vhosts/{}", self.url, percent_encoded(name));
        ureq::delete(&url)
            .header("authorization", &self.authorization)
            .call()
            .map(drop)
            .map_err(|error| failed("removing a virtual host", &error))
    }

    /// The names under which the broker has those connections.
    fn connections(&self, name: &str) -> Result<Vec<String>> {
        let url = format!("{}/api/connections?columns=name,client_properties", self.url);
        let listed: serde_json::Value = ureq::get(&url)
            .header("authorization", &self.authorization)
            .call()
            .and_then(|mut answer| answer.body_mut().read_json())
            .map_err(|error| failed("listing connections", &error))?;
        let connections = listed.as_array().into_iter().flatten();
        Ok(connections
            .filter(|connection| {
                let given = &connection["client_properties"]["connection_name"];
                given.as_str().is_some_and(|given| given.starts_with(name))
            })
            .filter_map(|connection| connection["name"].as_str().map(ToOwned::to_owned))
            .collect())
    }

    /// Closes a connection; `false` when it has gone by itself.
    fn close(&self, connection: &str) -> Result<bool> {
        let url = format!("{}/api/connections/{}", self.url, percent_encoded(connection));
        match ureq::delete(&url).header("authorization", &self.authorization).call() {
            Ok(_) => Ok(true),
            // The list lags behind.
            Err(ureq::Error::StatusCode(404)) => Ok(false),
            Err(error) => Err(failed("closing a connection", &error)),
        }
    }
}

fn failed(what: &str, error: &ureq::Error) -> Error {
    Error::new(ErrorKind::Internal, "manage", format!("{what}: {error}"))
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
    fn credentials_are_taken_out_of_the_url() {
        let management = Management::new("http://anna:s3cret@host:15672/");
        assert_eq!(management.url, "http://host:15672");
        assert_eq!(management.authorization, "Basic YW5uYTpzM2NyZXQ=");
    }

    #[test]
    fn a_connection_is_one_segment_of_a_path() {
        assert_eq!(percent_encoded("[::1]:1 -> 2"), "%5B%3A%3A1%5D%3A1%20-%3E%202");
    }
}
