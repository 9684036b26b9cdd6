"""The notebooks as a reader meets them: JupyterLab in a browser, Run All, and the tools that are clicked."""

import re

import pytest
from playwright.sync_api import expect

in_the_light = pytest.mark.parametrize("lab", ["light"], indirect=True)
in_the_dark = pytest.mark.parametrize("lab", ["dark"], indirect=True)


def run_all(lab, name):
    """Open and run a notebook: no error, nothing on stderr, pictures, and a silent console."""
    lab.open(name)
    outputs = lab.run_all()
    lab.screenshot(name)
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert not lab.complaints


@in_the_dark
def test_attention_basics(lab):
    run_all(lab, "01_attention_basics")


@in_the_light
def test_the_explorer_follows_mouse_and_keyboard(lab):
    run_all(lab, "04_combined_masks")
    lab.show_cell("MaskExplorer()")
    lab.page.get_by_title("query 'the' may not attend to 'cat'", exact=True).click()
    flipped = lab.page.get_by_title("query 'the' may attend to 'cat'", exact=True)
    expect(flipped).to_have_text("■")
    expect(lab.page.get_by_text("1 cell flipped")).to_be_visible()
    flipped.press("Space")
    expect(lab.page.get_by_title("query 'the' may not attend to 'cat'", exact=True)).to_have_text("⬚")
    lab.page.get_by_title("causal: off", exact=True).click()
    expect(lab.page.get_by_title("query 'the' may attend to 'down'", exact=True)).to_have_text("■")
    lab.screenshot("explorer")
    assert not lab.complaints


@in_the_light
def test_the_chat_box_answers(lab):
    run_all(lab, "08_dialogue")
    lab.show_cell("chat_box(Chat(bot, tokenizer, context=512))")
    lab.page.get_by_placeholder("your turn").first.fill("hello, i would like a table for four.")
    lab.page.get_by_role("button", name="Send").first.click()
    shown = lab.page.locator(".widget-html pre").first
    expect(shown).to_have_text(re.compile(r"^user: hello, i would like a table for four\.\s+bot: \w.+$"))
    lab.screenshot("chat")
    assert not lab.complaints
