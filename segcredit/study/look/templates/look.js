// Turns each element of the class "segcredit" that holds data into a browser of its completions.
// Texts become text nodes and nothing else, so that none of them can be markup.
(() => {
  const ROW = 28, VISIBLE = 196; // as in look.css
  const BEGINS = 0, OBSERVED = 2; // kinds of pieces, as in completions.py
  const LONG = 8; // characters of a mean piece from which credit is written behind each

  const make = (tag, name, ...children) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    made.append(...children.filter((child) => child !== "" && child !== null));
    return made;
  };
  const draw = (tag, name, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    if (name) made.setAttribute("class", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };
  const written = (value, beside = 0) => // what is nothing beside another number is 0
    Number(Math.abs(value) < Math.abs(beside) / 1000 ? 0 : value.toPrecision(3)).toString().replace("-", "−");
  const signed = (value) => (value > 0 ? "+" : "") + Number(value.toPrecision(2)).toString().replace("-", "−");
  const counted = (count, thing) => `${count.toLocaleString("en")} ${thing}${count === 1 ? "" : "s"}`;

  // One completion: its heading, its prompt with images, and its text once for each segmentation.
  const one = (data, row, shown) => {
    const word = (name) => data.words[data[name][row]];
    const { reward, step } = data;
    const heading = [
      word("source"), step[row] === null ? "" : `step ${step[row]}`, word("place"), word("facts"),
      data.truncated[row] ? "truncated" : "",
    ].filter(Boolean).join(" · ");
    const outcome = reward[row] === null ? "" : make("strong", "", `reward ${written(reward[row])}`);
    const made = make("article", "sc-one", make("p", "sc-heading", outcome, outcome && heading ? " · " : "", heading));
    const asked = make("div", "sc-asked");
    data.images[row].forEach((place, number) => {
      const image = make("img");
      image.src = data.words[place];
      image.alt = `Image ${number + 1} of the prompt`;
      asked.append(image);
    });
    if (word("prompt")) {
      const prompt = make("pre", "sc-prompt", word("prompt"));
      prompt.tabIndex = 0;
      prompt.setAttribute("role", "region");
      prompt.setAttribute("aria-label", "Prompt");
      asked.append(prompt);
    }
    if (asked.childNodes.length) made.append(asked);
    const cuts = data.cuts.filter((cut, number) => cut.sizes[row] !== null && shown[number]);
    for (const cut of cuts) made.append(cutOf(data, cut, row));
    if (!data.cuts.some((cut) => cut.sizes[row] !== null)) {
      made.append(make("pre", "sc-written", data.text[row] || make("em", "", "nothing")));
    }
    for (const place of data.notes[row]) made.append(make("p", "sc-soft", data.words[place]));
    return made;
  };

  const cutOf = (data, cut, row) => {
    const letters = [...data.text[row]]; // sizes count characters, not halves of pairs
    const sizes = cut.sizes[row], kinds = cut.kinds[row], none = [];
    const credit = (cut.credit && cut.credit[row]) || none, values = (cut.values && cut.values[row]) || none;
    const text = make("pre", "sc-written"), pieces = [];
    // One scale for the values of all segmentations, which are in one unit.
    const ranges = data.cuts.map((each) => each.range || none).flat(), range = [Math.min(...ranges), Math.max(...ranges)];
    const numbered = credit.length > 0 && letters.length >= LONG * sizes.length;
    if (letters.length < 3 * sizes.length) text.classList.add("sc-fine");
    const turns = (data.turns && data.turns[row]) || none;
    let end = 0, segment = -1, turn = 0, within = text;
    sizes.forEach((size, place) => {
      const kind = kinds ? kinds[place] : BEGINS;
      for (; turn < turns.length && turns[turn][0] <= end; turn++) {
        const facts = data.words[turns[turn][1]];
        within = make("span", "sc-turn", make("span", "sc-facts", `turn ${turn + 1}${facts ? ` · ${facts}` : ""}`));
        text.append(within);
      }
      if (kind === BEGINS) segment += 1;
      const piece = make("span", "", letters.slice(end, end + size).join(""));
      end += size;
      pieces.push(piece);
      within.append(piece);
      if (kind === OBSERVED) {
        piece.className = "sc-observed";
        return;
      }
      piece.className = `sc-piece${kind === BEGINS && segment ? " sc-begins" : ""}`;
      const known = [`segment ${segment + 1}`], given = credit[place];
      if (given !== undefined && given !== null) {
        known.push(`credit ${signed(given)}`);
        piece.style.setProperty("--sc-depth", Math.min(Math.abs(given) / (cut.deepest || 1), 1));
        if (given) piece.classList.add(given > 0 ? "sc-up" : "sc-down");
        if (numbered && kind === BEGINS) piece.dataset.number = signed(given);
      } else if (cut.name) {
        piece.classList.add(segment % 2 ? "sc-even" : "sc-odd");
      }
      if (values[place] !== undefined && values[place] !== null) known.push(`value ${written(values[place])}`);
      if (cut.name || known.length > 1) piece.title = known.join(", ");
    });
    if (!letters.length && !sizes.length) text.append(make("em", "", "nothing"));
    const said = [counted(segment + 1, "segment")];
    if (cut.notes && cut.notes[row]) said.unshift(cut.notes[row]);
    if (values.length) said.push(`value (line) from ${written(range[0], range[1])} to ${written(range[1])}`);
    if (credit.length) said.push(`credit (bars, shades) deepest from ±${written(cut.deepest)}`);
    const made = make("section", "sc-cut");
    if (cut.name || credit.length || values.length) {
      made.append(make("p", "", make("strong", "", cut.name), " ", make("span", "sc-soft", (cut.name ? said : said.slice(1)).join(" · "))));
    }
    if (cut.name || values.length) made.append(strip(cut, range, sizes, kinds, credit, values, letters.length, pieces));
    made.append(text);
    return made;
  };

  // The value as a line, credit as bars, and the segments below, along the completion's characters.
  const strip = (cut, [low, high], sizes, kinds, credit, values, length, pieces) => {
    const top = values.length ? 30 : 0, bars = credit.length ? 24 : 0, height = top + bars + 7;
    const svg = draw("svg", "sc-strip", { viewBox: `0 0 1000 ${height}`, preserveAspectRatio: "none", height, role: "img" });
    svg.setAttribute("aria-label", "Segments along the completion" + (values.length ? ", with their values" : "") + (credit.length ? ", with their credit" : ""));
    const scale = 1000 / Math.max(length, 1), middle = top + bars / 2;
    const here = draw("rect", "sc-here", { y: 0, height, width: 0 });
    svg.append(here);
    if (credit.length) svg.append(draw("line", "sc-axis", { x1: 0, x2: 1000, y1: middle, y2: middle }));
    const line = [];
    let end = 0, segment = -1, joined = false; // no line over what was observed
    sizes.forEach((size, place) => {
      const kind = kinds ? kinds[place] : BEGINS, x = end * scale, width = size * scale;
      if (kind === BEGINS) segment += 1;
      end += size;
      pieces[place].addEventListener("pointerenter", () => {
        here.setAttribute("x", x);
        here.setAttribute("width", Math.max(width, 2));
      });
      if (kind === OBSERVED) {
        joined = false;
        return;
      }
      svg.append(draw("rect", segment % 2 ? "sc-even" : "sc-odd", { x, width, y: top + bars + 2, height: 5 }));
      if (credit[place]) {
        const size = Math.min(Math.abs(credit[place]) / (cut.deepest || 1), 1) * (bars / 2 - 1);
        svg.append(draw("rect", credit[place] > 0 ? "sc-up" : "sc-down", { x, width, y: credit[place] > 0 ? middle - size : middle, height: size }));
      }
      if (values[place] !== undefined && values[place] !== null) {
        const y = 2 + (top - 5) * (1 - (values[place] - low) / (high - low || 1));
        line.push(`${joined ? "L" : "M"}${x} ${y}H${x + width}`);
        joined = true;
      }
    });
    pieces.forEach((piece) => piece.addEventListener("pointerleave", () => here.setAttribute("width", 0)));
    if (line.length) svg.append(draw("path", "sc-value", { d: line.join("") }));
    return svg;
  };

  // The outcomes to choose from: each reward where they are few, and what was cut off.
  const outcomes = (data) => {
    const known = [...new Set(data.reward.filter((x) => x !== null))].sort((a, b) => b - a);
    const found = known.length > 8
      ? [["reward above 0", (row) => data.reward[row] > 0], ["reward 0 or less", (row) => data.reward[row] !== null && data.reward[row] <= 0]]
      : known.map((x) => [`reward ${written(x)}`, (row) => data.reward[row] === x]);
    if (known.length > 8) {
      const upper = known[Math.floor(known.length / 20)];
      found.push([`the highest rewards, from ${written(upper)}`, (row) => data.reward[row] >= upper]);
    }
    if (data.truncated.some(Boolean)) found.push(["truncated", (row) => data.truncated[row]], ["not truncated", (row) => !data.truncated[row]]);
    return [["any outcome", () => true], ...found];
  };
  const choices = (column, any, said) => {
    const known = [...new Set(column)].filter((x) => x !== null);
    return [[any, () => true], ...known.map((x) => [said(x), (row) => column[row] === x])];
  };

  const browse = (root) => {
    const data = JSON.parse(root.querySelector("script").textContent);
    const count = data.text.length, shown = data.cuts.map((_, number) => number < 4);
    root.querySelector(".sc-plain").remove();
    const view = make("div");
    let found = [...data.text.keys()], at = 0, query = "", lowered = null;
    const show = () => {
      view.replaceChildren(found.length ? one(data, found[at], shown) : make("p", "sc-soft", "No completion is like that."));
      mark(view, query);
    };
    const names = make("div", "sc-names");
    if (data.cuts.length > 1) {
      data.cuts.forEach((cut, number) => {
        const box = make("input");
        box.type = "checkbox";
        box.checked = shown[number];
        box.addEventListener("change", () => { shown[number] = box.checked; show(); });
        names.append(make("label", "", box, cut.name));
      });
    }
    if (count < 2) {
      root.append(names, view);
      if (count) show();
      return null;
    }

    const search = make("input");
    search.type = "search";
    search.placeholder = "text of prompt or completion";
    search.setAttribute("aria-label", "Filter by text");
    const source = data.step.some((x) => x !== null) ? "run" : "prompt"; // of a batch in memory
    const filters = [[outcomes(data), "outcome"], [choices(data.step, "any step", (x) => `step ${x}`), "step"], [choices(data.source, `any ${source}`, (x) => data.words[x]), source]]
      .filter(([options]) => options.length > 2)
      .map(([options, name]) => {
        const select = make("select", "", ...options.map(([said]) => make("option", "", said)));
        select.setAttribute("aria-label", `Filter by ${name}`);
        return { select, keeps: (row) => options[select.selectedIndex][1](row) };
      });
    const tally = make("output", "sc-soft");
    const list = make("div", "sc-list"), inside = make("div");
    list.tabIndex = 0;
    list.setAttribute("role", "listbox");
    list.setAttribute("aria-label", "Completions");
    inside.style.position = "relative";
    list.append(inside);
    const base = `sc-${document.querySelectorAll(".segcredit").length}-${Math.random().toString(36).slice(2, 8)}`;

    // Only the rows in sight exist.
    const drawRows = () => {
      const first = Math.max(Math.floor(list.scrollTop / ROW) - 2, 0);
      const rows = found.slice(first, first + Math.ceil(VISIBLE / ROW) + 5).map((row, number) => {
        const place = first + number, step = data.step[row];
        const made = make("div", "sc-row",
          make("span", "", data.reward[row] === null ? "–" : written(data.reward[row])),
          make("span", "sc-soft", step === null ? data.words[data.place[row]] : `step ${step}`),
          make("span", "sc-soft", data.words[data.source[row]]),
          make("span", "", data.text[row].slice(0, 200).replace(/\s+/g, " ") || "∅"));
        made.style.top = `${place * ROW}px`;
        made.id = `${base}-${place}`;
        made.setAttribute("role", "option");
        made.setAttribute("aria-selected", place === at);
        made.setAttribute("aria-posinset", place + 1);
        made.setAttribute("aria-setsize", found.length);
        made.addEventListener("click", () => go(place));
        return made;
      });
      inside.replaceChildren(...rows);
      if (found.length) list.setAttribute("aria-activedescendant", `${base}-${at}`);
    };
    const go = (place) => {
      if (!found.length) return;
      at = Math.min(Math.max(place, 0), found.length - 1);
      const top = at * ROW;
      if (top < list.scrollTop) list.scrollTop = top;
      else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
      update();
    };
    const update = () => {
      tally.textContent = `${found.length ? (at + 1).toLocaleString("en") : 0} of ${found.length.toLocaleString("en")}${found.length < count ? ` (of ${count.toLocaleString("en")})` : ""}`;
      drawRows();
      show();
    };
    const filter = () => {
      const kept = found[at];
      query = search.value.toLowerCase();
      lowered ??= data.text.map((text, row) => `${text}\n${data.words[data.prompt[row]]}`.toLowerCase());
      found = [];
      for (let row = 0; row < count; row++) {
        if (filters.every((each) => each.keeps(row)) && (!query || lowered[row].includes(query))) found.push(row);
      }
      at = Math.max(found.indexOf(kept), 0);
      inside.style.height = `${found.length * ROW}px`;
      list.scrollTop = 0;
      go(at);
      if (!found.length) update();
    };
    search.addEventListener("input", filter);
    for (const { select } of filters) select.addEventListener("change", filter);
    let waits = false;
    list.addEventListener("scroll", () => {
      if (waits) return;
      waits = true;
      requestAnimationFrame(() => { waits = false; drawRows(); });
    });
    const button = (said, act) => {
      const made = make("button", "", said);
      made.type = "button";
      made.addEventListener("click", act);
      return made;
    };
    const key = (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      const typing = event.target === search, choosing = event.target.matches?.("select, .sc-prompt");
      const moves = { ArrowDown: 1, ArrowUp: -1, ...(typing ? {} : { j: 1, k: -1, PageDown: 7, PageUp: -7, Home: -count, End: count }) };
      if (choosing) return;
      if (event.key in moves) go(at + moves[event.key]);
      else if (event.key === "/" && !typing) { search.focus(); search.select(); }
      else if (event.key === "Escape" && typing) { search.value = ""; filter(); list.focus(); }
      else if (event.key === "Enter" && typing) list.focus();
      else return;
      event.preventDefault();
      event.stopPropagation();
    };
    root.addEventListener("keydown", key);
    root.append(
      make("div", "sc-filter", search, ...filters.map(({ select }) => select)),
      list,
      make("div", "sc-move", button("Previous", () => go(at - 1)), button("Next", () => go(at + 1)), tally,
        make("span", "sc-soft", "keys: j and k, / to filter")),
      names,
      view,
    );
    inside.style.height = `${count * ROW}px`;
    update();
    return key;
  };

  // Where the words that were searched for stand, without a change of the text.
  const mark = (view, query) => {
    if (!CSS.highlights) return;
    const ranges = [];
    const walker = document.createTreeWalker(view, NodeFilter.SHOW_TEXT);
    while (query && walker.nextNode()) {
      const text = walker.currentNode.data.toLowerCase();
      if (text.length !== walker.currentNode.data.length) continue; // a letter that is two in lower case
      for (let place = text.indexOf(query); place >= 0; place = text.indexOf(query, place + query.length)) {
        const range = new Range();
        range.setStart(walker.currentNode, place);
        range.setEnd(walker.currentNode, place + query.length);
        ranges.push(range);
      }
    }
    CSS.highlights.set("sc-found", new Highlight(...ranges));
  };

  const keys = new Map();
  for (const root of document.querySelectorAll(".segcredit:not([data-drawn])")) {
    root.dataset.drawn = "";
    keys.set(root, browse(root));
  }
  // On a page of its own the keys act on what is in sight; a notebook has others for them.
  if (document.querySelector('meta[name="generator"][content^="segcredit"]')) {
    document.addEventListener("keydown", (event) => {
      if (event.target !== document.body || !["j", "k", "/"].includes(event.key)) return;
      const seen = (root) => root.getBoundingClientRect().bottom > 0 && root.getBoundingClientRect().top < innerHeight;
      const root = [...keys.keys()].find((each) => keys.get(each) && seen(each));
      if (root) keys.get(root)(event);
    });
  }
})();
