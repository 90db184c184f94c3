// What is asked of the server that this page came from, and of no other: addresses are relative to the page.

/** Why there is no answer, in one line; `status` is HTTP's, 0 where the server was not reached. */
export class ServerError extends Error {
  constructor(message, status = 0) {
    super(message.replace(/\s+/g, " ").trim().slice(0, 1000));
    this.status = status;
  }
}

function headers(key) {
  return key ? { authorization: `Bearer ${key}` } : {};
}

async function reached(url, options) {
  try {
    return await fetch(url, options);
  } catch (reason) {
    if (reason.name === "AbortError") throw reason;
    throw new ServerError("The server cannot be reached. Is it running?");
  }
}

async function failure(response) {
  let message = `The server answered with status ${response.status}`;
  try {
    const told = (await response.json()).error?.message;
    if (typeof told === "string" && told) message = told;
  } catch {
    // then there is no more to tell
  }
  if (response.status === 401) message = `${message.replace(/\.$/, "")}: enter the server's API key in the settings.`;
  return new ServerError(message, response.status);
}

/** GET, as JSON. Rejects with ServerError. */
export async function get(url, key) {
  const response = await reached(url, { headers: headers(key) });
  if (!response.ok) throw await failure(response);
  return response.json();
}

/** Ask for an answer; `got(chunk)` is called with each event's JSON. Rejects with ServerError, or AbortError once `signal` says so. */
export async function chat(body, key, signal, got) {
  const response = await reached("v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json", ...headers(key) },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  if (!response.ok) throw await failure(response);
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    let chunk;
    try {
      chunk = JSON.parse(data);
    } catch {
      throw new ServerError("The server sent an event that is not JSON.");
    }
    if (chunk.error) throw new ServerError(String(chunk.error.message ?? "The server failed."), Number(chunk.error.code) || 500);
    got(chunk);
  }
  throw new ServerError("The connection ended before the answer was complete.");
}

/** The data of server-sent events. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let left = "";
  try {
    for (;;) {
      const { value, done } = await read(reader);
      if (done) return;
      const lines = (left + value).split(/\r?\n/);
      left = lines.pop();
      for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (reason) {
    if (reason.name === "AbortError") throw reason;
    throw new ServerError("The connection was lost before the answer was complete.");
  }
}
