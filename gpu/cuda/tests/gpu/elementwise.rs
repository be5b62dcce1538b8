use cuda::ops::{CopyPages, Embed, KvPages, KvView, NextNorm, QkvHead, RmsNorm};
use half::bf16;
use models::PLACEHOLDER;

use crate::{
    compare::{BF16_BOUND, F32_BOUND, bound, poisoned, relative_error, same_bits, wide},
    harness::{Case, Context, Outcome, ensure},
    host,
    random::Random,
};

pub fn cases() -> Vec<Case> {
    vec![
        Case { name: "embed gathers rows and last tokens", run: embed },
        Case { name: "rms_norm gathers and normalises", run: rms_norm },
        Case { name: "copy_pages copies pages of all layers", run: copy_pages },
        Case { name: "qkv_head rotates, normalises, fills pages", run: qkv_head },
    ]
}

fn embed(context: &Context, random: &mut Random) -> Outcome {
    let device = &context.device;
    for width in [64, 576, 1024, 4096] {
        let (vocab, tokens, slots) = (97, random.between(1, 40), 5);
        let table = random.halves(vocab * width, 1.0);
        let last: Vec<u32> = (0..slots).map(|_| random.below(vocab) as u32).collect();
        let slot: Vec<u32> = (0..tokens).map(|_| random.below(slots) as u32).collect();
        let ids: Vec<u32> = (0..tokens)
            .map(|_| if random.below(3) == 0 { PLACEHOLDER } else { random.below(vocab) as u32 })
            .collect();
        let hidden = poisoned::<f32>(device, tokens * width)?;
        let weighed = poisoned::<bf16>(device, tokens * width)?;
        let squares = poisoned::<f32>(device, tokens * width / 8)?;
        let weight = random.floats(width, 2.0);
        let norm_weight = device.upload(&weight)?;
        let next = NextNorm { weight: norm_weight.view(), weighed: weighed.view(), squares: squares.view() };
        device.embed(Embed {
            hidden: hidden.view(),
            table: device.upload(&table)?.view(),
            ids: device.upload(&ids)?.view(),
            slots: device.upload(&slot)?.view(),
            last_tokens: device.upload(&last)?.view(),
            next: Some(next),
            tokens,
            width,
        })?;
        let expected: Vec<f32> = ids
            .iter()
            .zip(&slot)
            .flat_map(|(&id, &slot)| {
                let id = if id == PLACEHOLDER { last[slot as usize] } else { id } as usize;
                table[id * width..][..width].iter().map(|v| v.to_f32())
            })
            .collect();
        same_bits("hidden", &device.read(hidden.view())?, &expected)?;
        let products: Vec<bf16> = expected
            .chunks_exact(width)
            .flat_map(|row| row.iter().zip(&weight).map(|(v, w)| bf16::from_f32(v * w)))
            .collect();
        same_bits("weighed", &device.read(weighed.view())?, &products)?;
        let sums: Vec<f64> =
            expected.chunks_exact(8).map(|group| group.iter().map(|&v| f64::from(v).powi(2)).sum()).collect();
        let found = device.read(squares.view())?;
        bound("squares", relative_error(found.iter().map(|&v| f64::from(v)), &sums), F32_BOUND)?;
    }
    Ok("exact".into())
}

fn rms_norm(context: &Context, random: &mut Random) -> Outcome {
    let device = &context.device;
    let mut worst: f64 = 0.0;
    for width in [64, 576, 960, 1024, 4096, 5120] {
        let (total, count) = (9, 6);
        let hidden = random.floats(total * width, 3.0);
        let weight = random.floats(width, 2.0);
        let rows: Vec<u32> = random.shuffled(total)[..count].to_vec();
        let stream = device.upload(&hidden)?;
        let out = poisoned::<bf16>(device, count * width)?;
        device.rms_norm(RmsNorm {
            out: out.view(),
            hidden: stream.view(),
            weight: device.upload(&weight)?.view(),
            rows: Some(device.upload(&rows)?.view()),
            scales: None,
            count,
            width,
            eps: 1e-6,
        })?;
        let mut expected = Vec::new();
        for &row in &rows {
            let row: Vec<f64> =
                hidden[row as usize * width..][..width].iter().map(|&v| f64::from(v)).collect();
            let scale = 1.0 / (row.iter().map(|v| v * v).sum::<f64>() / width as f64 + 1e-6).sqrt();
            expected.extend(row.iter().zip(&weight).map(|(v, &w)| v * scale * f64::from(w)));
        }
        let error = relative_error(wide(&device.read(out.view())?), &expected);
        bound("norm", error, BF16_BOUND)?;
        worst = worst.max(error);
    }
    Ok(format!("error {worst:.1e}"))
}

fn copy_pages(context: &Context, random: &mut Random) -> Outcome {
    let device = &context.device;
    let (layers, pages, page_elements) = (3, 7, 2 * 2 * 16 * 64);
    let kv = random.halves(layers * pages * page_elements, 1.0);
    let order = random.shuffled(pages);
    let pairs = &order[..6];
    let slab = device.upload(&kv)?;
    device.copy_pages(CopyPages {
        kv: slab.view().cast(),
        pairs: device.upload(pairs)?.view(),
        count: 3,
        layers,
        page_bytes: 2 * page_elements,
    })?;
    let mut expected = kv.clone();
    for layer in 0..layers {
        for pair in pairs.chunks_exact(2) {
            let at = |page: u32| (layer * pages + page as usize) * page_elements;
            expected.copy_within(at(pair[0])..at(pair[0]) + page_elements, at(pair[1]));
        }
    }
    same_bits("pages", &device.read(slab.view())?, &expected)?;
    Ok("exact".into())
}

fn qkv_head(context: &Context, random: &mut Random) -> Outcome {
    let device = &context.device;
    let mut worst: f64 = 0.0;
    for (head_dim, heads, kv_heads, page_size, bias, norm) in [
        (64, 9, 3, 16, false, false),
        (64, 14, 2, 32, true, false),
        (128, 16, 8, 16, false, true),
        (128, 4, 4, 64, true, true),
    ] {
        let (tokens, positions, pages) = (random.between(1, 37), 300, 40);
        let (half, all) = (head_dim / 2, heads + 2 * kv_heads);
        let qkv = random.halves(tokens * all * head_dim, 2.0);
        let bias = bias.then(|| random.halves(all * head_dim, 1.0));
        let norms = norm.then(|| [random.floats(head_dim, 2.0), random.floats(head_dim, 2.0)]);
        let angles = random.floats(positions * half, 3.0);
        let cosines: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
        let sines: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
        let position: Vec<u32> = (0..tokens).map(|_| random.below(positions) as u32).collect();
        let mut places: Vec<u32> = random.shuffled(pages * page_size)[..tokens].to_vec();
        places[0] = u32::MAX;
        let eps = 1e-6;

        let queries = poisoned::<bf16>(device, tokens * heads * head_dim)?;
        let slab = poisoned::<bf16>(device, pages * 2 * kv_heads * page_size * head_dim)?;
        let bias_buffer = bias.as_ref().map(|bias| device.upload(bias)).transpose()?;
        let norm_buffers = match &norms {
            Some([q, k]) => Some([device.upload(q)?, device.upload(k)?]),
            None => None,
        };
        let codes = poisoned::<u8>(device, slab.len())?;
        let narrow = poisoned::<bf16>(device, queries.len())?;
        let inputs = (
            device.upload(&qkv)?,
            device.upload(&cosines)?,
            device.upload(&sines)?,
            device.upload(&position)?,
            device.upload(&places)?,
        );
        let op = |queries, pages| QkvHead {
            queries,
            kv: KvPages { pages, kv_heads, head_dim, page_size },
            qkv: inputs.0.view(),
            bias: bias_buffer.as_ref().map(|bias| bias.view()),
            norms: norm_buffers.as_ref().map(|[q, k]| [q.view(), k.view()]),
            cosines: inputs.1.view(),
            sines: inputs.2.view(),
            positions: inputs.3.view(),
            places: inputs.4.view(),
            tokens,
            heads,
            norm_width: head_dim,
            eps,
        };
        device.qkv_head(op(queries.view(), slab.view().into()))?;
        device.qkv_head(op(narrow.view(), KvView::Fp8(codes.view())))?;
        same_bits("queries beside fp8", &device.read(queries.view())?, &device.read(narrow.view())?)?;
        let kept_codes = device.read(codes.view().cast::<u16>())?;
        let out = device.read(queries.view())?;
        let kept = device.read(slab.view())?;
        let (mut found, mut expected) = (Vec::new(), Vec::new());
        let mut written = 0;
        for token in 0..tokens {
            for head in 0..all {
                let row = token * all + head;
                let mut v: Vec<f64> = wide(&qkv[row * head_dim..][..head_dim]).collect();
                if let Some(bias) = &bias {
                    v.iter_mut().zip(wide(&bias[head * head_dim..])).for_each(|(v, b)| *v += b);
                }
                let is_value = head >= heads + kv_heads;
                if let (Some(norms), false) = (&norms, is_value) {
                    let scale = 1.0
                        / (v.iter().map(|v| v * v).sum::<f64>() / head_dim as f64 + f64::from(eps)).sqrt();
                    let weight = &norms[usize::from(head >= heads)];
                    v.iter_mut().zip(weight).for_each(|(v, &w)| *v *= scale * f64::from(w));
                }
                if !is_value {
                    for i in 0..half {
                        let angle = position[token] as usize * half + i;
                        let (c, s) = (f64::from(cosines[angle]), f64::from(sines[angle]));
                        (v[i], v[i + half]) = (v[i] * c - v[i + half] * s, v[i + half] * c + v[i] * s);
                    }
                }
                if head < heads {
                    found.extend(wide(&out[(token * heads + head) * head_dim..][..head_dim]));
                } else if places[token] != u32::MAX {
                    let (page, offset) =
                        (places[token] as usize / page_size, places[token] as usize % page_size);
                    let kv_head = head - heads - if is_value { kv_heads } else { 0 };
                    let block = (page * 2 + usize::from(is_value)) * kv_heads + kv_head;
                    found.extend(wide(&kept[(block * page_size + offset) * head_dim..][..head_dim]));
                    written += head_dim;
                } else {
                    continue;
                }
                expected.extend(v);
            }
        }
        let error = relative_error(found, &expected);
        bound("heads", error, BF16_BOUND)?;
        worst = worst.max(error);
        for (run, kept) in kept_codes.chunks_exact(8).zip(kept.chunks_exact(16)) {
            for (value, kept) in host::unpack_codes(run).into_iter().zip(kept) {
                let kept = kept.to_f32();
                // half a step of FP8, and the rounding of bf16
                let off = (value - kept).abs();
                ensure(
                    kept.is_nan() && value.is_nan() || off <= kept.abs().max(2f32.powi(-6)) / 15.5,
                    || format!("fp8 keeps {value} for {kept}"),
                )?;
            }
        }
        let poison = kept.iter().filter(|v| v.to_bits() == 0xffff).count();
        ensure(poison == kept.len() - written, || "a place was written that no token has".into())?;
    }
    Ok(format!("error {worst:.1e}"))
}
