/** What the page asks the server. Paths are relative to the page, so that a proxy may put it elsewhere. */

const KEY = "goim-operator-key";
const PATIENCE = 5000; // ms; a push may wait longer than figures do, but not for ever
const PUSH_PATIENCE = 30_000;

/** The server wants an API key, or another one. */
export class Locked extends Error {}

/** No answer, or none that means anything. */
export class Unreachable extends Error {}

/** A browser may forbid storage: the key is then forgotten with the page. */
let key = "";
try {
  key = sessionStorage.getItem(KEY) ?? "";
} catch { /* see above */ }

/** @param {string} text */
export function useKey(text) {
  key = text;
  try {
    if (text) sessionStorage.setItem(KEY, text);
    else sessionStorage.removeItem(KEY);
  } catch { /* see above */ }
}

/**
 * Ask, and give what goim answers: `{code, message, data}`.
 *
 * Throws {@link Locked} for 401 and {@link Unreachable} where nothing of that shape comes back.
 *
 * @param {"GET" | "POST"} method
 * @param {string} path
 * @param {[string, string][]} [query]
 * @param {string} [body]
 * @returns {Promise<{code: number, message: string, data: any}>}
 */
export async function ask(method, path, query = [], body) {
  const used = key;
  const url = new URL(path, document.baseURI);
  url.search = String(new URLSearchParams(query));
  const response = await reach(url, {
    method,
    body,
    cache: "no-store",
    headers: used ? { Authorization: `Bearer ${used}` } : {},
    signal: AbortSignal.timeout(body === undefined ? PATIENCE : PUSH_PATIENCE),
  });
  if (response.status === 401) {
    if (used !== key) return ask(method, path, query, body); // it was replaced meanwhile
    useKey("");
    throw new Locked(used ? "The server does not know this key." : "");
  }
  return response.body;
}

/** A user's number may be larger than JavaScript's numbers are exact: then it is kept as text. */
function whole(_, value, context) {
  return typeof value === "number" && !Number.isSafeInteger(value) && /^-?\d+$/.test(context?.source) ? context.source : value;
}

async function reach(url, request) {
  let response;
  try {
    response = await fetch(url, request);
    const body = JSON.parse(await response.text(), whole);
    if (typeof body?.code === "number") return { status: response.status, body };
  } catch (reason) {
    if (response === undefined) {
      throw new Unreachable(reason.name === "TimeoutError" ? "The server does not answer." : "The server cannot be reached.");
    }
  }
  if (response.status === 401) return { status: 401 };
  throw new Unreachable(`The server answered ${response.status}, and nothing that is for this page.`);
}
