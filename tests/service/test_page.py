"""The page: nothing but what stands in it may run, nothing is fetched from elsewhere, and it knows what it shows."""

import base64
import hashlib
import re

from serving import chain, png, service

from medfedpure.service.page import page
from medfedpure.service.schema import ABOUT


def test_nothing_comes_from_elsewhere(service):
    answer = service.client.get("/")
    text, policy = answer.text, answer.headers["content-security-policy"]
    assert (text, policy) == page()
    assert not re.findall(r"https?:|//[a-z]|@import|url\(|\bsrc=|<link(?! rel=\"icon\" href=\"data:,\")", text)
    assert not re.findall(r"\bstyle=|\bon[a-z]+=|javascript:|eval\(|innerHTML", text)
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        (block,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S)
        digest = base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_it_says_what_a_verdict_may_not_be_used_for():
    text = " ".join(page()[0].split())
    assert "Research software, no medical device." in text
    assert "may not be used for a diagnosis" in text
    assert "no medical device" in ABOUT


def test_it_reads_what_the_service_says(service):
    asked = re.search(r'fetch\("([^"]+)"', page()[0])[1]
    row = service.client.post(f"/{asked}", files={"file": png(0)}).json()
    used = set(re.findall(r"\brow\.(\w+)", page()[0])) - {"error"}
    assert used <= row.keys(), "the page shows what no row has"
    assert set(re.findall(r'at\("(\w+)"\)', page()[0])) <= set(re.findall(r'id="(\w+)"', page()[0]))


def test_the_description_names_every_answer_with_an_example(service):
    found = service.client.get("/openapi.json").json()
    assert {"/health", "/ready", "/metrics", "/v1/verdict", "/v1/verdicts"} == found["paths"].keys()
    for path in ("/v1/verdict", "/v1/verdicts"):
        route = found["paths"][path]["post"]
        assert {"400", "401", "408", "413", "415", "422", "429", "503"} <= route["responses"].keys()
        assert "multipart/form-data" in route["requestBody"]["content"]
        assert route["security"]
    one = found["paths"]["/v1/verdict"]["post"]["responses"]["200"]["content"]["application/json"]["example"]
    row = service.client.post("/v1/verdict", files={"file": png(0)}).json()
    assert one.keys() | {"error"} == row.keys()  # FastAPI leaves null out of what it describes
