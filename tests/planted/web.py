"""Planted bugs of requests, streams and the console: what only many clients, or a client with bad intentions, would notice."""

from __future__ import annotations

__all__ = ["WEB"]

from tests.planted.bug import Bug

WEB = (
    Bug(
        "a key of an import counts for another caller", "app/web/endpoints/imports.py",
        '"\\x1f".join((context.caller, f"{route.method} {route.path}", key))',
        '"\\x1f".join((f"{route.method} {route.path}", key))',
        ("tests/web/endpoints/test_imports.py",),
    ),
    Bug(
        "a key of an import counts for another route", "app/web/endpoints/imports.py",
        '"\\x1f".join((context.caller, f"{route.method} {route.path}", key))',
        '"\\x1f".join((context.caller, key))',
        ("tests/web/endpoints/test_imports.py",),
    ),
    Bug(
        "the rest of an import that was cut off is taken for the next request", "app/web/endpoints/imports.py",
        "        if is_truncated:\n            response.force_close()\n",
        "",
        ("tests/web/endpoints/test_imports.py",),
    ),
    Bug(
        "a line without an end fills the memory", "app/web/requests/ndjson.py",
        "        if size > BODY_BYTES_MAX or len(rest) > LINE_BYTES_MAX:",
        "        if size > BODY_BYTES_MAX:",
        ("tests/web/endpoints/test_imports.py",),
    ),
    Bug(
        "a cursor of one route continues the list of another one", "app/web/requests/paging.py",
        "orjson.dumps([route, filters])",
        "orjson.dumps([filters])",
        ("tests/web/requests/test_paging.py",),
    ),
    Bug(
        "a cursor is lost if the filters are given in another order", "app/web/requests/paging.py",
        "    filters = sorted((name, value)",
        "    filters = list((name, value)",
        ("tests/web/requests/test_paging.py",),
    ),
    Bug(
        "a filter takes one alternative too few", "app/web/requests/filters.py",
        "if len(values) > ALTERNATIVES_MAX else []",
        "if len(values) >= ALTERNATIVES_MAX else []",
        ("tests/web/test_lists.py",),
    ),
    Bug(
        "a leap second is no moment", "app/web/requests/filters.py",
        '    text = re.sub(r":60(?=[.Zz+-])", ":59", value)\n',
        "    text = value\n",
        ("tests/web/requests/test_filters.py",),
    ),
    Bug(
        "only the first line of If-Match counts", "app/web/requests/preconditions.py",
        '", ".join(request.headers.getall(name)).strip(" \\t")',
        'request.headers[name].strip(" \\t")',
        ("tests/web/endpoints/test_preconditions.py",),
    ),
    Bug(
        "wrong tokens can be tried without a limit", "app/web/access/gate.py",
        "            if hdrs.AUTHORIZATION in request.headers or TOKEN in request.query:",
        "            if hdrs.AUTHORIZATION in request.headers:",
        ("tests/security/test_limits.py",),
    ),
    Bug(
        "wrong keys can be tried in the form of the console without a limit", "app/web/access/gate.py",
        "        except ProblemError:\n"
        '            self._count(self._wrong_keys, request.remote or "", closes=True)\n'
        "            raise\n"
        "        if key.role",
        "        except ProblemError:\n            raise\n        if key.role",
        ("tests/security/test_limits.py",),
    ),
    Bug(
        "all for whom a process asks share the rate of one caller", "app/web/access/gate.py",
        "        if self._requests is not None and key.role != MODULE:",
        "        if self._requests is not None:",
        ("tests/security/test_limits.py",),
    ),
    Bug(
        "a key for processes opens the console", "app/web/access/gate.py",
        '        if key.role == MODULE:\n            raise ProblemError(403, "forbidden", "A key of this role',
        '        if False:\n            raise ProblemError(403, "forbidden", "A key of this role',
        ("tests/security/test_limits.py",),
    ),
    Bug(
        "the console has no rate of requests", "app/web/access/gate.py",
        "        if self._requests is not None:\n            self._count(self._requests, key.name)\n        if roles",
        "        if roles",
        ("tests/security/test_limits.py",),
    ),
    Bug(
        "the names of hosts fill the memory", "app/web/access/gate.py",
        "                if len(self._known) < _KNOWN_MAX:\n                    self._known.add(host)",
        "                self._known.add(host)",
        ("tests/security/test_limits.py",),
    ),
    Bug(
        "a client of another process misses what becomes visible late", "app/web/streams/feed.py",
        "        since = position if instance == self.instance else position - VISIBILITY_DELAY_MAX",
        "        since = position",
        ("tests/web/endpoints/test_feed.py",),
    ),
    Bug(
        "a look that fails loses what it has found", "app/web/streams/feed.py",
        "        latest = await self._read(keys[:LOAD_MAX]) if keys and self.followers else {}\n"
        "        # Nothing is marked as found before it is: a look that fails is repeated whole.\n"
        "        if self._changed is not None:\n"
        "            self._changed.difference_update(keys)\n",
        "        if self._changed is not None:\n"
        "            self._changed.difference_update(keys)\n"
        "        latest = await self._read(keys[:LOAD_MAX]) if keys and self.followers else {}\n",
        ("tests/web/endpoints/test_feed.py",),
    ),
    Bug(
        "a change at the begin of a feed is lost", "app/web/streams/feed.py",
        "            self._changed = stack.enter_context(self._changes.watch(self._cls)) if self._changes.is_only_writer else None\n"
        "            self._mark: ChangeMark = await self._changes.mark(self._cls)",
        "            self._mark: ChangeMark = await self._changes.mark(self._cls)\n"
        "            self._changed = stack.enter_context(self._changes.watch(self._cls)) if self._changes.is_only_writer else None",
        ("tests/web/endpoints/test_feed.py",),
    ),
    Bug(
        "a stream sends a state that has changed since", "app/web/streams/feed.py",
        "            self._latest = latest\n",
        "            self._latest.update(latest)\n",
        ("tests/web/endpoints/test_feed.py",),
    ),
    Bug(
        "the states of a stream come in the order of their first change", "app/web/streams/list_stream.py",
        "for look in reversed(looks) for key in reversed(look.keys)))[::-1]",
        "for look in looks for key in look.keys))",
        ("tests/web/endpoints/test_feed.py",),
    ),
    Bug(
        "an id from the begin of the calendar ends the stream", "app/web/streams/list_stream.py",
        '        return max(position, _EARLIEST), found[2] or ""',
        '        return position, found[2] or ""',
        ("tests/web/endpoints/test_list_stream.py",),
    ),
    Bug(
        "an export ends where a search has stopped", "app/web/streams/list_export.py",
        "        if len(states) < PAGE and examined_to is None:",
        "        if len(states) < PAGE:",
        ("tests/web/endpoints/test_export.py",),
    ),
    Bug(
        "an export that fails looks complete", "app/web/streams/list_export.py",
        "            except (ConnectionError, TimeoutError, StorageUnavailable):\n                break_off(request)",
        "            except (ConnectionError, TimeoutError, StorageUnavailable):\n                await response.write_eof()",
        ("tests/web/endpoints/test_export.py",),
    ),
    Bug(
        "exports do not count as streams", "app/web/streams/list_export.py",
        "        with streams.slot(context.caller):\n            pages",
        "        if True:\n            pages",
        ("tests/web/endpoints/test_export.py",),
    ),
    Bug(
        "a list ignores what decides about whole states", "app/web/endpoints/module_routes.py",
        "fetch, key_of, show if kept else route.show))",
        "fetch, key_of, route.show))",
        ("tests/web/endpoints/test_export.py",),
    ),
    Bug(
        "the answer for a caller that has gone is waited for", "app/web/workers/commands.py",
        "                waiting.pop(number, None)",
        "                pass",
        ("tests/web/workers/test_commands.py",),
    ),
    Bug(
        "an operator's key for other processes lends a viewer its rights", "app/web/operations/module_api.py",
        "                require_role(principal, frozenset((OPERATOR, *known.roles)), known.is_scoped)\n",
        "",
        ("tests/web/operations/test_module_api.py",),
    ),
    Bug(
        "a request names another caller than the one who sends it", "app/web/operations/remote_modules.py",
        'sent = {**headers, CALLER: f"{principal.name}:{principal.role}", hdrs.ACCEPT',
        'sent = {CALLER: f"{principal.name}:{principal.role}", **headers, hdrs.ACCEPT',
        ("tests/web/operations/test_module_api.py",),
    ),
    Bug(
        "a redirect takes the key of the processes elsewhere", "app/web/operations/remote_modules.py",
        "headers=sent, allow_redirects=False",
        "headers=sent, allow_redirects=True",
        ("tests/web/operations/test_module_api.py",),
    ),
    Bug(
        "an outage of a module's database counts as one of its process", "app/web/operations/remote_modules.py",
        "(response.status == 503 and body is None)",
        "response.status == 503",
        ("tests/web/operations/test_module_api.py",),
    ),
    Bug(
        "a form without a token is taken", "app/web/console/frame.py",
        '    if session is not None and not compare_digest(form.pop(_CSRF, "").encode(), session.csrf.encode()):',
        '    if session is not None and form.get(_CSRF) and not compare_digest(form.pop(_CSRF, "").encode(), session.csrf.encode()):',
        ("tests/console/test_frame.py",),
    ),
    Bug(
        "a session of another installation is valid", "app/web/console/session.py",
        'new(f"{self._secret} {key.digest}".encode()',
        'new(f"{key.digest}".encode()',
        ("tests/console/test_frame.py",),
    ),
    Bug(
        "a session never ends", "app/web/console/session.py",
        "        return self._session(key, found[0]) if self._now() < int(found[2]) else None",
        "        return self._session(key, found[0])",
        ("tests/console/test_frame.py",),
    ),
    Bug(
        "an ended session is valid again after many others have ended", "app/web/console/session.py",
        "if until > self._now()}",
        "if until < self._now()}",
        ("tests/console/test_frame.py",),
    ),
    Bug(
        "the cookie of the console goes over http behind a proxy", "app/web/console/login.py",
        'secure=request.secure or request.headers.get(_FORWARDED, "").lower() == "https",',
        "secure=request.secure,",
        ("tests/console/test_frame.py",),
    ),
)  # fmt: skip
